"""`make nightly`: a release that breaks a hook is told by the hook's name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BREAKING = """
import wrapt

@wrapt.when_imported("langchain_core.tools.base")
def moved(module):
    del module.BaseTool.arun

@wrapt.when_imported("langgraph.store.base")
def gone(module):
    del module.BaseStore
"""
"""Read by every interpreter at its start: a release in which two symbols have moved."""


@pytest.fixture(scope="module")
def nightly() -> Any:
    spec = importlib.util.spec_from_file_location("nightly", ROOT / "scripts" / "nightly.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nightly"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def test_hooks_that_fit(nightly: Any) -> None:
    assert nightly.broken_hooks(Path(sys.executable), "autogen") == []


def test_a_release_that_breaks_hooks(nightly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(BREAKING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = nightly.broken_hooks(Path(sys.executable), "langchain")
    told = "\n".join(broken)
    assert "langchain_core.tools.base" in told
    assert "BaseTool.arun" in told
    assert "BaseStore" in told
