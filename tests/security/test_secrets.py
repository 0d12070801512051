"""Keys of many formats go down every road of the kernel. None stands in log, audit, trace or others' answers."""

from __future__ import annotations

import asyncio
import io
import logging
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from aios_evals.siege.keys import core, keys
from aios_evals.siege.world import Agent, quick
from aios_kernel import errors
from aios_kernel.access.redaction import redacted
from aios_kernel.client import Client, connect, kernel_command, kernel_input
from aios_kernel.config import Config, socket_of
from aios_kernel.kernel import Kernel
from aios_kernel.server.log import LogFormat
from aios_kernel.server.runtime import running_kernel
from aios_kernel.syscalls import (
    AccessAudit,
    AccessGrant,
    AgentExit,
    AgentSend,
    AgentSpawn,
    AgentWait,
    Done,
    Failed,
    KernelKill,
    KernelPolicy,
    KernelPs,
    KernelTrace,
    LlmChat,
    LlmEmbed,
    MemoryAdd,
    MemoryGet,
    MemorySearch,
    Message,
    Request,
    StorageGet,
    StoragePut,
    Syscall,
    ToolBegin,
    ToolEnd,
    ToolGrant,
    ToolInvoke,
    ToolSpec,
)
from aios_kernel.tools import HostedTool, ToolRegistry

KEYS = keys(11)


@pytest.fixture
def log() -> Any:
    """All that the kernel, its libraries and asyncio log, as a kernel process writes it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(LogFormat())
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.setLevel(level)
    root.removeHandler(handler)


def failing(text: str, inner: str = "") -> str:
    """A tool that fails with a key in its error, and another one in the error before."""
    try:
        raise ValueError(f"cannot log in with {inner or text}")
    except ValueError as error:
        raise RuntimeError(f"gave up on {text}") from error


def hosted() -> ToolRegistry:
    spec = ToolSpec(name="failing", parameters={"type": "object", "properties": {"text": {"type": "string"}}})
    return ToolRegistry([HostedTool(spec, failing)])


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncGenerator[Kernel, None]:
    config = msgspec.structs.replace(quick(tmp_path / "home"), http="127.0.0.1:0")
    async with running_kernel(config) as running:
        running._tools._registry = hosted()  # what a plugin would offer
        yield running


def roads(key: str) -> list[Syscall]:
    """A key in every place of a syscall where a careless agent could leave one."""
    flat = key.replace("\n", " ")
    return [
        LlmChat(messages=[Message(role="user", content=f"log in with {key}")]),
        LlmChat(messages=[Message(role="user", content="x")], model=key, lora=key),
        LlmChat(messages=[Message(role="user", content="x")], schema={"type": key}),
        LlmEmbed(texts=[key], model=key),
        ToolBegin(name="search", arguments=msgspec.json.encode({"key": key}).decode()),
        ToolBegin(name="search", arguments=key),
        ToolBegin(name=key),
        ToolEnd(grant=key, ok=False, error=key),
        ToolInvoke(name="failing", arguments=msgspec.json.encode({"text": key}).decode()),
        ToolInvoke(name="failing", arguments=msgspec.json.encode({"other": key, "text": 5}).decode()),
        ToolInvoke(name=key, arguments=key),
        MemoryAdd(text=key, metadata={"key": key, key: 1}, source=flat[:400]),
        MemoryAdd(text="x", namespace=f"agent/{flat}"),
        MemoryAdd(text="x", namespace=f"agent/careless/{flat}"),
        MemorySearch(query=key, filter={key: key}, namespace=key),
        MemoryGet(id=flat),
        StoragePut(path=flat, data=key.encode()),
        StorageGet(path="x", owner=f"agent/{flat}"),
        AccessGrant(to=flat, resource=flat, rights=["read"]),
        AgentSend(to=flat, body=key, topic=key),
        AgentWait(program=key),
        KernelKill(target=key),
        KernelTrace(program=key),
        KernelPolicy(name=key, options={key: key}),
        AgentSpawn(program=flat[:100], agent=flat[:150], framework=flat[:100], parent=key),
        AgentSpawn(program=flat[:150], agent="child", framework=flat[:150]),
    ]


async def walk(kernel: Kernel, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = Agent(kernel, "ann", "careless", f"run-{hash(key)}")
    await careless.begin()
    for call in roads(key):
        await careless.ask(call)
    grant = await careless.do(ToolBegin(name="search"))
    assert isinstance(grant.result, ToolGrant)
    await careless.do(ToolEnd(grant=grant.result.grant, ok=False, error=f"401 for {key}"))

    async def fault(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError(f"a fault of ours beside {key}")

    with monkeypatch.context() as patch:
        patch.setattr(type(kernel.managers.memory), "get", fault)
        answer = await careless.ask(MemoryGet(id="x"))
        assert isinstance(answer, Failed)
        assert answer.code == errors.InternalError.code
    await careless.do(AgentExit(error=f"Traceback: cannot log in with {key}"))
    named = kernel.connect("ann", key)  # a client that calls itself so, and needs a program of its own
    named.request(Request(id=1, call=MemoryAdd(text="x")), lambda frame: None)
    named.request(Request(id=2, call=MemoryAdd(text="x"), program=key), lambda frame: None)


async def by_http(url: str, key: str) -> list[str]:
    """Answers that an unknown client gets."""
    flat = "".join(each for each in key if each.isprintable() and each.isascii())
    async with httpx.AsyncClient(base_url=url) as http:
        answers = [
            await http.get("/v1/models", headers={"authorization": f"Bearer {flat}"}),
            await http.get("/v1/models", headers={"authorization": f"Bearer {flat}:agent"}),
            await http.get("/v1/models", headers={"authorization": flat}),
            await http.post("/v1/chat/completions", json={"api_key": key}, headers={"x-aios-program": flat}),
            await http.post("/v1/chat/completions", content=b'{"key": ' + key.encode()),
        ]
    assert {answer.status_code for answer in answers} == {401}
    return [answer.text for answer in answers]


def _written(home: Path) -> str:
    files = [*home.glob("audit.*"), *(home / "traces").iterdir(), *(home / "run").iterdir()]
    return "".join(file.read_bytes().decode(errors="replace") for file in files if file.is_file())


@pytest.fixture
def walked(kernel: Kernel, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    async def walk_all() -> tuple[str, list[str]]:
        """Every key on every road; gives all that was written down, and what others were told."""
        assert kernel.http_url is not None
        told: list[str] = []
        for key in KEYS.values():
            await walk(kernel, key, monkeypatch)
            told += await by_http(kernel.http_url, key)
        neighbour, stranger = (Agent(kernel, who, "looking", f"looking-{who}") for who in ("ann", "bob"))
        for agent in (neighbour, stranger):
            await agent.begin()
        for call in (AccessAudit(limit=100_000), KernelTrace(), KernelPs()):
            for agent in (neighbour, stranger):
                answer = await agent.ask(call)
                assert isinstance(answer, Done)
                if isinstance(call, KernelPs):  # names are what agents called themselves; what they said is not shown
                    rows = answer.result.programs  # type: ignore[union-attr]
                    told += [str(row.error) for row in rows if agent is neighbour or row.principal != "bob"]
                else:
                    told.append(msgspec.json.encode(answer).decode())
        await asyncio.sleep(0)
        kernel.tracer.flush()
        await kernel.managers.audit.flush()
        home = Path(kernel.config.home)
        return await asyncio.to_thread(_written, home) + log.getvalue(), told

    return walk_all


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_no_key_is_written_down_or_told_to_others(walked: Callable[[], Any]) -> None:
    assert len(KEYS) >= 20
    written, told = await walked()
    assert written.count("failing") > len(KEYS)  # the roads were walked, and are on record
    assert "ZeroDivisionError" in written
    assert "gave up on [secret]" in written
    assert [line[:300] for line in written.splitlines() if any(core(key) in line for key in KEYS.values())] == []
    assert [name for name, key in KEYS.items() if any(core(key) in each for each in told)] == []


@pytest.mark.slow
async def test_without_redaction_they_would_be_found(
    walked: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("trace._shown", "server.log.redacted", "access.chain.redacted", "agents.redacted"):
        monkeypatch.setattr(f"aios_kernel.{place}", lambda text: text)
    written, told = await walked()
    assert len([key for key in KEYS.values() if core(key) in written]) == len(KEYS)
    assert len([key for key in KEYS.values() if any(core(key) in each for each in told)]) == len(KEYS)


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_taken_out_wherever_it_stands(name: str) -> None:
    for number in range(50):
        key = keys(number)[name]
        for text in (key, f"see {key} there", f"('{key}',)", f"x={key}&y=1", f"agent/a/{key}"):
            assert core(key) not in redacted(text), text


@pytest.mark.parametrize(
    "text",
    [
        "agent/researcher/notes", "llm.chat", "demo", "the tokenizer took 5 s", "task-1234567890abcdef", "group/team",
        "2026-11-27 17:00:01 INFO aios_kernel: ready after 2.1 s: model demo, policy program", "skeleton-keys-are-fun",
        "a1b2c3d4e5f60718", "10.0.0.1:8400", "password reset page", "unix:/run/user/0/aios/run/http.sock",
    ],
)  # fmt: skip
def test_what_is_no_key_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.slow
def test_the_log_of_a_process_has_no_key_of_its_configuration(tmp_path: Path) -> None:
    """A kernel that cannot reach its database says so, and not with which password."""
    password = "pw" + core(KEYS["model hub"])
    config = msgspec.structs.replace(
        quick(tmp_path / "home"),
        storage="postgres", storage_url=f"postgresql://app:{password}@127.0.0.1:1/main?connect_timeout=2",
        api_key=KEYS["model server"],
    )  # fmt: skip
    log = tmp_path / "kernel.log"
    process = subprocess.Popen(
        [*kernel_command(config, forever=True), "--log", str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        process.stdin.write(kernel_input(config))
        process.stdin.close()
        said = _use(config, process)
        said += process.stdout.read().decode() + log.read_text()
    assert "PostgreSQL" in said
    assert password not in said
    assert core(KEYS["model server"]) not in said


def _use(config: Config, process: subprocess.Popen[bytes]) -> str:
    """Ask for a file once the kernel is there, and end it; gives the error's words."""
    ends_at = time.monotonic() + 60
    while not socket_of(config).exists() and process.poll() is None and time.monotonic() < ends_at:
        time.sleep(0.05)
    said = ""
    if process.poll() is None:
        connection = connect(msgspec.structs.replace(config, kernel="auto"), start=False)
        with pytest.raises(errors.AiosError) as caught:
            Client(connection).call(StorageGet(path="x"))
        said = str(caught.value)
        connection.close()
        process.terminate()
    process.wait(30)
    return said
