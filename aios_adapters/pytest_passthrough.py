"""Pytest plugin: any test suite under the kernel, its calls unchanged.

    AIOS_KERNEL=passthrough pytest -p aios_adapters.pytest_passthrough ...

Every test runs in a scope of its own, so that each model, tool and memory call in it passes the kernel (no model is
needed), while the original runs and answers. The suite must give the passes and failures that it gives without. At the
end the kernel's audit log says how many calls went through; `--aios-report FILE` writes that as JSON.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from aios_adapters._agent import Runner
from aios_adapters._kernel import close_links, link_for
from aios_adapters._options import AgentOptions
from aios_adapters._scope import Scope, current
from aios_adapters._steps import wrap_function
from aios_adapters.plugins import host
from aios_kernel.client import Client
from aios_kernel.config import load
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import AccessAudit, AuditRecords, KernelShutdown

_CALLS = ("llm.", "tool.begin", "tool.call", "memory.", "storage.")
"""Syscalls that stand for a call of a framework; the others are the bookkeeping around them."""
_RECORDS = 10_000_000
_LONGEST_NAME = 80


def pytest_addoption(parser: pytest.Parser) -> None:
    """The report's file."""
    parser.getgroup("aios").addoption("--aios-report", metavar="FILE", help="write what went through the kernel (JSON)")


def pytest_configure(config: pytest.Config) -> None:
    """Start the kernel before the first test: a suite may forbid sockets, or replace clocks."""
    if os.environ.get("AIOS_KERNEL") != "passthrough":
        raise pytest.UsageError(
            "aios_adapters.pytest_passthrough needs AIOS_KERNEL=passthrough (it would replace the models otherwise)"
        )
    config.pluginmanager.register(PassThrough(config), "aios-passthrough")


class PassThrough:
    """One session: a kernel with a data directory of its own, and a scope a test."""

    def __init__(self, config: pytest.Config) -> None:
        self._report: str | None = config.getoption("--aios-report")
        self._is_worker = hasattr(config, "workerinput")
        self._home = tempfile.mkdtemp(prefix="aios-") if "AIOS_HOME" not in os.environ else None
        if self._home is not None:
            os.environ["AIOS_HOME"] = self._home
        self._connection = link_for(load(), host()).connect()
        self._scopes: list[Scope] = []
        self._calls: Counter[str] = Counter()
        self._tests = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Switch a scope on for a test, its fixtures included."""
        host().check()
        runner = Runner(AgentOptions(_name_of(item)), None)
        scope, _ = runner.begin()
        assert scope is not None
        # What a test leaves running (a session's fixture) goes on: scopes are closed when the session ends.
        self._scopes.append(scope)
        self._tests += 1
        with scope.on():
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Carry the scope into a coroutine: who runs it may do so in a context that was copied earlier."""
        test, scope = getattr(item, "obj", None), current()
        if scope is None or not inspect.iscoroutinefunction(test):
            return (yield)
        item.obj = wrap_function(test, _Again(scope))  # type: ignore[attr-defined, arg-type]
        try:
            return (yield)
        finally:
            item.obj = test  # type: ignore[attr-defined]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Count; end the kernel that was started for this session."""
        for scope in self._scopes:
            scope.close()
        client = Client(self._connection)
        try:
            records = client.call(AccessAudit(limit=_RECORDS))
            assert isinstance(records, AuditRecords)
            self._calls.update(r.syscall for r in records.records if r.syscall.startswith(_CALLS))
            if self._home is not None:
                client.call(KernelShutdown())
        except AiosError as error:
            self._calls["lost"] = 1
            session.config.issue_config_time_warning(pytest.PytestWarning(f"aios: {error}"), stacklevel=2)
        close_links()
        if self._is_worker:
            session.config.workeroutput["aios"] = (self._tests, dict(self._calls))  # type: ignore[attr-defined]
        if self._home is not None:
            os.environ.pop("AIOS_HOME", None)
            shutil.rmtree(self._home, ignore_errors=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Add up what the workers of pytest-xdist counted."""
        tests, calls = getattr(node, "workeroutput", {}).get("aios", (0, {}))
        self._tests += tests
        self._calls.update(calls)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say how many calls went through."""
        total = sum(self._calls.values())
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(self._calls.items()))
        terminalreporter.write_line(f"aios: {total} calls of {self._tests} tests went through the kernel ({kinds})")
        if self._report:
            report = {"tests": self._tests, "calls": total, "syscalls": dict(self._calls)}
            Path(self._report).write_text(json.dumps(report))


class _Again:
    """Gives `wrap_function` a scope that is open already."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def begin(self) -> tuple[Scope, bool]:
        return self._scope, False


def _name_of(item: pytest.Item) -> str:
    plain = "".join(c if c.isascii() and c.isprintable() and c != "/" else "_" for c in item.name)
    return plain[:_LONGEST_NAME]
