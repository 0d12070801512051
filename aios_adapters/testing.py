"""Pytest fixtures for adapters and agents: `pytest_plugins = ["aios_adapters.testing"]`.

`fake_kernel` is a real kernel, behind the real protocol, with the fake engine (see `aios_kernel.engine.fake` for the
replies it gives) and an own data directory. It runs in this process; with `AIOS_PYTHON` in the environment, which an
environment without the kernel's libraries needs, it is a process of that interpreter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from aios_adapters import _kernel
from aios_kernel.client import Client, connect, stop_in_process
from aios_kernel.config import Config, load
from aios_kernel.syscalls import KernelPs, KernelShutdown, KernelTrace, ProgramInfo, Programs, Span, Trace

pytest.register_assert_rewrite("aios_adapters.contract")


@dataclass(frozen=True, slots=True)
class KernelHandle:
    """A running kernel and a client of its own to look at it."""

    config: Config
    client: Client

    def ps(self) -> list[ProgramInfo]:
        """The process table, without this handle's own row."""
        answer = self.client.call(KernelPs())
        assert isinstance(answer, Programs)
        return [row for row in answer.programs if row.agent != "test-handle"]

    def spans(self) -> list[Span]:
        """The trace, oldest end first."""
        answer = self.client.call(KernelTrace())
        assert isinstance(answer, Trace)
        return [span for span in answer.spans if span.agent != "test-handle"]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 5.0) -> bool:
        """Wait until something holds (what is only posted, such as an exit, arrives a moment later)."""
        ends_at = time.monotonic() + seconds
        while not (held := condition()) and time.monotonic() < ends_at:
            time.sleep(0.005)
        return held


@pytest.fixture
def fake_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[KernelHandle, None, None]:
    """A kernel with the fake engine; decorated agents of this test use it without further settings."""
    elsewhere = "AIOS_PYTHON" in os.environ
    settings = {
        "KERNEL": "auto" if elsewhere else "inprocess",
        "HOME": str(tmp_path / "aios"),
        "MODEL": "fake",
        "EMBEDDER": "hash",
        "VECTORS": "exact",
        "START_TIMEOUT_S": "90",  # sooner than pytest's own limit: its error tells what the kernel was at
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AIOS_{name}", value)
    config = load()
    connection = connect(config, client="test-handle")
    try:
        yield KernelHandle(config, Client(connection))
    finally:
        if elsewhere:
            Client(connection).call(KernelShutdown())
        connection.close()
        _kernel.close_links()
        if not elsewhere:
            stop_in_process(config)
