"""`AIOS_KERNEL=passthrough`: calls pass the kernel, originals answer, suites come out as they do without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from langchain_core.language_models.fake_chat_models import FakeListChatModel

import aios_adapters as aios
from aios_adapters import _kernel
from aios_kernel.client import Client
from aios_kernel.config import home_of, load
from aios_kernel.syscalls import AccessAudit, AuditRecords, KernelShutdown

SUITE = Path(__file__).parent / "passthrough_suite" / "suite.py"
OPTIONS = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "-p", "no:cacheprovider"]


def outcomes(folder: Path, name: str, *arguments: str, **environment: str) -> dict[str, str]:
    """Run the suite in a process of its own; gives each test's outcome, `-` for passed."""
    report = folder / f"{name}.xml"
    suite = folder / "test_suite.py"
    suite.write_text(SUITE.read_text())  # away from our own conftest
    command = [sys.executable, "-m", "pytest", *OPTIONS, f"--junitxml={report}", *arguments, str(suite)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AIOS_")}
    done = subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=100)
    assert report.exists(), done.stdout + done.stderr
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {case.attrib["name"]: ",".join(part.tag for part in case) or "-" for case in cases}


@pytest.mark.slow
def test_suite_has_the_same_outcomes(tmp_path: Path) -> None:
    without = outcomes(tmp_path, "without")
    report = tmp_path / "report.json"
    plugin = ("-p", "aios_adapters.pytest_passthrough", "--aios-report", str(report))
    under = outcomes(tmp_path, "under", *plugin, AIOS_KERNEL="passthrough")
    assert under == without
    assert without["test_this_fails"] == "failure"
    assert list(without.values()).count("failure") == 1
    counts = json.loads(report.read_text())
    assert counts["tests"] == len(without)
    assert counts["syscalls"]["llm.chat"] >= 12
    assert counts["syscalls"]["tool.begin"] >= 4
    assert counts["syscalls"]["storage.list"] > 0
    assert counts["syscalls"]["memory.search"] > 0


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
