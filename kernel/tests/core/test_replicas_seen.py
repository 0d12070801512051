"""What a kernel in front of several servers says of them: `kernel.info` and `kernel.ps`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.client import Client
from aios_kernel.config import Config, token_file_of
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    AgentExit,
    AgentSpawn,
    KernelInfo,
    KernelPs,
    KernelStatus,
    LlmChat,
    LlmResult,
    Message,
    Programs,
    Replica,
)

COMMON: dict[str, Any] = {"kernel": "inprocess", "embedder": "hash", "vectors": "exact", "policy": "fifo"}


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Client]:
    """A kernel in front of two others, which share a token."""
    behind = [
        InProcessKernel(Config(home=str(tmp_path / name), model="fake", http="127.0.0.1:0", token="t" * 32, **COMMON))
        for name in "ab"
    ]
    urls = [f"{each.kernel.http_url}/v1" for each in behind if each.kernel is not None]
    key = token_file_of(Config(home=str(tmp_path / "a"))).read_text()
    for name in "ab":
        assert token_file_of(Config(home=str(tmp_path / name))).read_text() == key
    kernel = InProcessKernel(
        Config(home=str(tmp_path / "front"), model="openai:fake", base_url=",".join(urls), api_key=key, **COMMON)
    )
    connection = kernel.connect("test")
    yield Client(connection)
    connection.close()
    for each in (kernel, *behind):
        each.stop()


def replicas(client: Client) -> list[Replica]:
    status = client.call(KernelInfo())
    assert isinstance(status, KernelStatus)
    return status.replicas


def test_where_programs_are(front: Client) -> None:
    for program in ("p", "q"):
        front.call(AgentSpawn(program=program, agent="a"))
    front.call(AgentSpawn(program="child", agent="a", parent="p"))
    for program in ("p", "q", "child"):
        answer = front.call(LlmChat(messages=[Message("user", "say yes")]), program=program)
        assert isinstance(answer, LlmResult)
        assert answer.text == "yes"
    rows = front.call(KernelPs())
    assert isinstance(rows, Programs)
    where = {row.program: row.replica for row in rows.programs}
    known = replicas(front)
    assert {where["p"], where["q"]} == {replica.url for replica in known}
    assert where["child"] == where["p"]
    assert [(r.up, r.families, r.open_calls, r.lost_calls) for r in known] == [(True, 1, 0, 0)] * 2
    for program in ("child", "p", "q"):
        front.call(AgentExit(), program=program)
    front.call(LlmChat(messages=[Message("user", "say yes")]))  # orders are taken in turn: the exits are done
    assert sum(replica.families for replica in replicas(front)) <= 1
