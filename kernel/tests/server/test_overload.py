"""A full kernel: refusals are decided by a request's name, before its arguments are read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from aios_kernel import errors, frames
from aios_kernel.client import Client, Connection
from aios_kernel.config import Config
from aios_kernel.overload import Gate
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    AccessAudit,
    AgentExit,
    AgentSpawn,
    AuditRecords,
    Hello,
    KernelPs,
    LlmChat,
    LlmEmbed,
    LlmResult,
    Message,
    Request,
    ToolBegin,
    ToolEnd,
    ToolGrant,
)

PONDER = LlmChat(messages=[Message(role="user", content="ponder")])


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    config = Config(home=str(tmp_path), model="fake", embedder="hash", vectors="exact", max_open_calls=1)
    kernel = InProcessKernel(config)
    connection = kernel.connect("test")
    yield connection
    connection.close()
    kernel.stop()


def fill(connection: Connection) -> threading.Thread:
    """Keep the only place taken until the program `p` ends."""

    def ponder() -> None:
        with pytest.raises(errors.Cancelled):
            Client(connection).call(PONDER, program="p")

    thread = threading.Thread(target=ponder)
    thread.start()
    ends_at = time.monotonic() + 10
    while time.monotonic() < ends_at:
        if any(row.state == "running" for row in Client(connection).call(KernelPs()).programs):  # type: ignore[union-attr]
            return thread
    raise AssertionError("the call did not begin")


def test_what_ends_something_and_what_looks_are_let_in_when_nothing_else_is(connection: Connection) -> None:
    client = Client(connection)
    client.call(AgentSpawn(program="p", agent="a"))
    client.call(AgentSpawn(program="q", agent="b"))
    grant = client.call(ToolBegin(name="search"), program="q")
    assert isinstance(grant, ToolGrant)
    filler = fill(connection)
    for call in (PONDER, LlmEmbed(texts=["x"]), AgentSpawn(program="r", agent="c"), ToolBegin(name="search")):
        with pytest.raises(errors.Busy) as caught:
            client.call(call, program="q")
        assert (caught.value.retry_after_s or 0) > 0
    assert (caught.value.agent, caught.value.syscall) == ("b", "tool.begin")
    client.call(ToolEnd(grant=grant.grant), program="q")
    client.call(AgentExit(), program="q")
    client.call(AgentExit(), program="p")
    filler.join(10)
    assert isinstance(client.call(LlmChat(messages=[Message(role="user", content="say yes")])), LlmResult)
    audit = client.call(AccessAudit())
    assert isinstance(audit, AuditRecords)
    refused = [(record.syscall, record.program) for record in audit.records if record.outcome == "busy"]
    assert ("llm.chat", "q") in refused


def test_the_arguments_of_a_refused_request_are_not_read() -> None:
    gate = Gate(1)
    reader = frames.client_frames(gate)
    wrong = msgspec.msgpack.encode({"type": "request", "id": 7, "call": {"type": "llm.chat", "messages": 5}})
    data = len(wrong).to_bytes(4, "big") + wrong
    (unread,) = reader.feed(data)
    assert isinstance(unread, frames.Unread)
    assert isinstance(unread.error, errors.InvalidRequest)
    gate.enter()
    (unread,) = reader.feed(data)
    assert isinstance(unread, frames.Unread)
    assert (unread.id, unread.syscall, type(unread.error)) == (7, "llm.chat", errors.Busy)
    hello = Hello(version=1, token="t", client="c")
    exiting = Request(id=8, call=AgentExit(), program="p")
    assert [*reader.feed(frames.encode(hello) + frames.encode(exiting))] == [hello, exiting]
    gate.leave()
    assert not gate.full
