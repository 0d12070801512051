"""`AIOS_KERNEL=passthrough`: calls pass the kernel, originals answer, suites come out as they do without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

import aios_adapters as aios
from aios_adapters import _kernel
from aios_kernel.client import Client
from aios_kernel.config import home_of, load
from aios_kernel.syscalls import AccessAudit, AuditRecords, KernelShutdown

SUITES = Path(__file__).parent / "passthrough_suite"
OPTIONS = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "-p", "no:cacheprovider"]


def compared(folder: Path, suite: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Run the check on a copy of a suite, away from our own conftest; gives its status, output and figures."""
    (folder / "test_suite.py").write_text(suite.read_text())
    command = [sys.executable, "-m", "aios_adapters.passthrough_check", "--json", "figures.json", *OPTIONS, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)
    figures = folder / "figures.json"
    return done.returncode, done.stdout + done.stderr, json.loads(figures.read_text()) if figures.exists() else {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_users_suite_has_the_same_outcomes(tmp_path: Path) -> None:
    status, said, figures = compared(tmp_path, SUITES / "suite.py")
    assert status == 0, said
    assert figures["differences"] == {}
    assert figures["without"]["failed"] == 1
    assert figures["calls"]["llm.chat"] >= 12
    assert figures["calls"]["tool.begin"] >= 4
    assert figures["calls"]["storage.list"] > 0
    assert figures["calls"]["memory.search"] > 0
    assert "different outcomes: 0" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_frameworks_ship_has_the_same_outcomes(tmp_path: Path) -> None:
    status, said, figures = compared(tmp_path, SUITES / "standard.py", "-W", "ignore::Warning")
    assert status == 0, said
    assert figures["without"]["passed"] >= 50
    assert figures["without"]["failed"] > 0, "the check sees failures"
    assert figures["calls"]["llm.chat"] >= 20


@pytest.mark.slow
def test_a_difference_is_told(tmp_path: Path) -> None:
    suite = tmp_path / "differs.py"
    suite.write_text("import os\ndef test_it():\n    assert 'AIOS_KERNEL' not in os.environ\n")
    status, said, figures = compared(tmp_path, suite)
    assert status == 1
    assert figures["differences"] == {"test_suite::test_it": ["passed", "failed"]}
    assert "test_suite::test_it: passed without us, failed through the kernel" in said


def test_a_suite_that_cannot_run(tmp_path: Path) -> None:
    suite = tmp_path / "broken.py"
    suite.write_text("import no_such_module_at_all\n")
    status, said, _ = compared(tmp_path, suite)
    assert status == 2
    assert "no_such_module_at_all" in said
    assert "fix: " in said


def test_plugin_needs_the_setting(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass")
    command = [sys.executable, "-m", "pytest", "-p", "aios_adapters.pytest_passthrough", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"AIOS_KERNEL": "auto"}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "needs AIOS_KERNEL=passthrough" in done.stderr + done.stdout


def test_decorated_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_KERNEL", "passthrough")
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))

    @aios.agent(name="mine")
    def ask(model: Any) -> str:
        return model.invoke("x").content

    try:
        assert ask(FakeListChatModel(responses=["original"])) == "original"
        client = Client(_kernel.link_for(load(), aios.host()).connect())
        records = client.call(AccessAudit())
        assert isinstance(records, AuditRecords)
        assert ("mine", "llm.chat", "ok") in [(r.agent, r.syscall, r.outcome) for r in records.records]
        client.call(KernelShutdown())
    finally:
        _kernel.close_links()


def test_has_a_kernel_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_HOME", str(tmp_path))
    assert home_of(load({"kernel": "passthrough"})) != home_of(load())
    assert load({"kernel": "passthrough"}).model == "fake"
    assert load({"kernel": "passthrough", "model": "demo"}).model == "demo"
