"""Divergence as a user sees it: in the kernel's status and in the span of the turn that caused it."""

from __future__ import annotations

from pathlib import Path

from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import KernelInfo, KernelStatus, KernelTrace, LlmChat, LlmResult, Message, Trace


def test_status_and_trace_tell_it(tmp_path: Path) -> None:
    """The fake model's prompts end with a token of their own, so that every next turn leaves the one before there."""
    running = InProcessKernel(
        Config(kernel="inprocess", home=str(tmp_path), model="fake", embedder="hash", vectors="exact")
    )
    connection = running.connect("watcher")
    client = Client(connection)
    try:
        first = [Message(role="user", content="say one two three")]
        answer = client.call(LlmChat(messages=first))
        assert isinstance(answer, LlmResult)
        said = Message(role="assistant", content=answer.text)
        client.call(LlmChat(messages=[*first, said, Message(role="user", content="say more")]))
        client.call(LlmChat(messages=[Message(role="user", content="say something else altogether")]))
        status, trace = client.call(KernelInfo()), client.call(KernelTrace())
    finally:
        connection.close()
        running.stop()
    assert isinstance(status, KernelStatus)
    assert isinstance(trace, Trace)
    diverged = [span.diverged_tokens for span in trace.spans if span.syscall == "llm.chat"]
    assert diverged == [0, 1 + answer.usage.completion_tokens - 1, 0]
    assert status.tokens_diverged == sum(diverged)
    assert (status.swap_host_bytes, status.swap_disk_bytes) == (0, 0)
