"""The kernel as an MCP server: the package's own client over stdio and HTTP, and who is kept out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from aios_kernel.client import Client as KernelClient
from aios_kernel.config import Config, token_file_of
from aios_kernel.mcp_front.own_tools import OWN_TOOLS
from aios_kernel.mcp_front.server import public_names
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import AccessAudit, AuditRecord, AuditRecords, ToolSpec

GUEST = "guest-token"
TOOLS = """
[python."paths/base"]
function = "posixpath:basename"
description = "The last part of a path."

[python.wait]
function = "asyncio:sleep"
parameters = {type = "object", properties = {delay = {type = "number"}}}
"""


class Served:
    """A kernel with its HTTP front, and a look at its audit log."""

    def __init__(self, home: Path) -> None:
        (home / "tools.toml").write_text(TOOLS)
        guests = {"guest": hashlib.sha256(GUEST.encode()).hexdigest()}
        config = Config(
            kernel="inprocess", home=str(home), model="fake", embedder="hash", vectors="exact",
            http="127.0.0.1:0", principals=guests,
        )  # fmt: skip
        self.home = home
        self.running = InProcessKernel(config)
        assert self.running.kernel is not None
        self.url = f"{self.running.kernel.http_url}/mcp"
        self.token = token_file_of(config).read_text()
        self.connection = self.running.connect("watcher")

    def audit(self, agent: str) -> list[AuditRecord]:
        found = KernelClient(self.connection).call(AccessAudit(agent=agent, limit=1000))
        assert isinstance(found, AuditRecords)
        return found.records[::-1]

    @contextlib.asynccontextmanager
    async def client(self, agent: str, token: str = "", mode: str = "auto") -> AsyncGenerator[Client, None]:
        """An MCP client over HTTP."""
        headers = {"authorization": f"Bearer {token or self.token}:{agent}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode) as client,
        ):
            yield client


@pytest.fixture
def served(tmp_path: Path) -> Generator[Served, None, None]:
    made = Served(tmp_path)
    yield made
    made.connection.close()
    made.running.stop()


def text(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


def said(result: CallToolResult) -> Any:
    assert not result.is_error, text(result)
    return result.structured_content


async def use_everything(client: Client) -> None:
    """Memory, storage and a hosted tool, each once."""
    names = [tool.name for tool in (await client.list_tools()).tools]
    assert names == [*OWN_TOOLS, "paths__base", "wait"]
    note = said(await client.call_tool("memory_add", {"text": "The kiwi costs 12.5.", "metadata": {"type": "price"}}))
    assert note["metadata"] == {"type": "price"}
    found = said(await client.call_tool("memory_search", {"query": "kiwi", "k": 3}))
    assert [each["text"] for each in found["notes"]] == ["The kiwi costs 12.5."]
    assert said(await client.call_tool("memory_get", {"id": note["id"]}))["text"] == "The kiwi costs 12.5."
    said(await client.call_tool("memory_update", {"id": note["id"], "text": "The kiwi costs 13."}))
    assert said(await client.call_tool("memory_delete", {"id": note["id"]}))["count"] == 1
    said(await client.call_tool("storage_put", {"path": "a/list.txt", "text": "one"}))
    said(await client.call_tool("storage_put", {"path": "a/list.txt", "base64": "AP8="}))
    got = await client.call_tool("storage_get", {"path": "a/list.txt", "version": 1})
    assert (text(got), said(got)["version"]) == ("one", 1)
    assert said(await client.call_tool("storage_get", {"path": "a/list.txt"}))["base64"] == "AP8="
    said(await client.call_tool("storage_rollback", {"path": "a/list.txt", "version": 1}))
    versions = said(await client.call_tool("storage_versions", {"path": "a/list.txt"}))["files"]
    assert [each["version"] for each in versions] == [3, 2, 1]
    assert [each["path"] for each in said(await client.call_tool("storage_list", {}))["files"]] == ["a/list.txt"]
    assert text(await client.call_tool("paths__base", {"p": "/srv/notes.txt"})) == "notes.txt"


CALLS = [
    "tool.list", "memory.add", "memory.search", "memory.get", "memory.update", "memory.delete", "storage.put",
    "storage.put", "storage.get", "storage.get", "storage.rollback", "storage.versions", "storage.list", "tool.call",
]  # fmt: skip


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http_each_call_is_a_syscall_of_the_agent(served: Served, mode: str) -> None:
    async with served.client("clerk", mode=mode) as client:
        assert client.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")
        await use_everything(client)
    assert [each.syscall for each in served.audit("clerk")] == ["agent.spawn", *CALLS]
    assert {each.outcome for each in served.audit("clerk")} == {"ok"}


async def test_over_stdio_it_starts_or_joins_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "tools.toml").write_text(TOOLS)
    settings = {"AIOS_HOME": str(tmp_path), "AIOS_MODEL": "fake", "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    environment = {**settings, "AIOS_GRACE_S": "0.2", "PATH": os.environ["PATH"]}
    aios = str(Path(sys.executable).with_name("aios"))
    command = StdioServerParameters(command=aios, args=["mcp", "--agent", "clerk"], env=environment)
    async with Client(command) as client:
        await use_everything(client)
        async with Client(command, mode="legacy") as other:  # joins
            said(await other.call_tool("memory_add", {"text": "The kiwi costs 12.5."}))
        found = said(await client.call_tool("memory_search", {"query": "kiwi"}))
        assert len(found["notes"]) == 1, "both are the same agent in the same kernel"


async def test_errors_are_results_that_a_model_can_read(served: Served) -> None:
    async with served.client("clerk") as client:
        for name, arguments, reason in [
            ("memory_get", {"id": "none"}, "none"),
            ("memory_add", {}, "missing required field `text`"),
            ("memory_add", {"text": 5}, "Expected `str`"),
            ("memory_add", {"text": "x", "embed": False}, "has no argument 'embed'"),
            ("storage_put", {"path": "a"}, "either text or base64"),
            ("storage_put", {"path": "a", "base64": "!"}, "base64"),
            ("storage_put", {"path": "../a", "text": ""}, "'..'"),
            ("memory_search", {"namespace": "agent/other"}, "may not read agent/other"),
            ("paths__base", {"q": 1}, "paths/base"),
            ("rm", {}, "has no tool 'rm'"),
        ]:
            result = await client.call_tool(name, arguments)
            assert result.is_error
            assert reason in text(result), text(result)


async def test_principals_do_not_see_each_other(served: Served) -> None:
    async with served.client("clerk") as client, served.client("clerk", GUEST) as guest:
        said(await client.call_tool("memory_add", {"text": "The kiwi costs 12.5."}))
        said(await client.call_tool("storage_put", {"path": "a", "text": "one"}))
        assert said(await guest.call_tool("memory_search", {"query": "kiwi", "namespace": "all"}))["notes"] == []
        assert said(await guest.call_tool("storage_list", {}))["files"] == []
        assert (await guest.call_tool("storage_get", {"path": "a"})).is_error


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_cancelled_call_is_cancelled_in_the_kernel(served: Served, mode: str) -> None:
    async with served.client("clerk", mode=mode) as client:
        await client.list_tools()
        call = asyncio.create_task(client.call_tool("wait", {"delay": 60}))
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        for _ in range(100):
            last = served.audit("clerk")[-1]
            if last.syscall == "tool.call":
                break
            await asyncio.sleep(0.05)
        assert (last.syscall, last.outcome) == ("tool.call", "cancelled")


INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"host": "evil.example"}, 403),
        ({"content-type": "text/plain"}, 400),
    ],
)
async def test_who_is_kept_out(served: Served, headers: dict[str, str], status: int) -> None:
    given = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if headers and "authorization" not in headers:
        given["authorization"] = f"Bearer {served.token}"
    async with httpx2.AsyncClient() as http:
        answer = await http.post(served.url, content=json.dumps(INITIALIZE), headers={**given, **headers})
        assert answer.status_code == status, answer.text
        assert "mcp-session-id" not in answer.headers


async def test_a_session_is_its_principals(served: Served) -> None:
    given = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    async with httpx2.AsyncClient(headers=given) as http:
        ours = {"authorization": f"Bearer {served.token}"}
        begun = await http.post(served.url, json=INITIALIZE, headers=ours)
        session = {"mcp-session-id": begun.headers["mcp-session-id"]}
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        assert (await http.post(served.url, json=listing, headers={**ours, **session})).status_code == 200
        theirs = {"authorization": f"Bearer {GUEST}"}
        assert (await http.post(served.url, json=listing, headers={**theirs, **session})).status_code == 404
        assert (await http.delete(served.url, headers={**theirs, **session})).status_code == 404
        assert (await http.delete(served.url, headers={**ours, **session})).status_code == 200


async def test_a_kernel_that_goes_away_is_joined_again(tmp_path: Path) -> None:
    settings = {"AIOS_HOME": str(tmp_path), "AIOS_MODEL": "fake", "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    environment = {**settings, "AIOS_GRACE_S": "0.2", "PATH": os.environ["PATH"]}
    aios = str(Path(sys.executable).with_name("aios"))
    async with Client(StdioServerParameters(command=aios, args=["mcp"], env=environment)) as client:
        said(await client.call_tool("storage_put", {"path": "a", "text": "one"}))
        stopping = await asyncio.create_subprocess_exec(aios, "kill", "--kernel", env=environment)
        await stopping.wait()
        assert (await client.call_tool("storage_get", {"path": "a"})).is_error
        for _ in range(200):  # the old one may still be on its way out
            got = await client.call_tool("storage_get", {"path": "a"})
            if not got.is_error:
                break
            await asyncio.sleep(0.1)
        assert text(got) == "one"


def test_names_that_would_be_one_are_kept_apart() -> None:
    specs = [ToolSpec(name) for name in ("a/b__c", "a__b/c", "memory_add", "x/" + "y" * 80, "äh/tool", "plain")]
    names = public_names(specs)
    assert sorted(names.values()) == sorted(spec.name for spec in specs)
    assert names["plain"] == "plain"
    assert names["_h__tool"] == "äh/tool"
    assert "memory_add" not in names
    assert "a__b__c" not in names
    assert all(len(public) <= 64 for public in names)
