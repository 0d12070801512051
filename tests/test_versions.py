"""Robust against versions: one table of what was tested, and whatever has moved fails loudly."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters import plugins, versions
from aios_adapters.patching import Patcher
from aios_adapters.plugins import host
from aios_kernel.errors import AdapterError

ROOT = Path(__file__).resolve().parent.parent
HERE = ("langchain", "autogen", "llamaindex", "openai")
"""The adapters whose frameworks are in this environment."""


@pytest.mark.parametrize("name", versions.TESTED)
def test_the_extra_asks_for_what_was_tested(name: str) -> None:
    project = tomllib.loads((ROOT / "adapters" / name / "pyproject.toml").read_text())["project"]
    asked: dict[str, tuple[str, str]] = {}
    for requirement in project["optional-dependencies"]["framework"]:
        found = re.match(r"([a-z-]+)(?:\[.*\])?>=([\d.]+),<([\d.]+)", requirement)
        assert found, requirement
        asked[found[1]] = (found[2], found[3])
    assert asked == versions.TESTED[name]


@pytest.mark.parametrize("name", versions.TESTED)
def test_the_adapter_reads_the_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "adapters" / name / "src"))  # MetaGPT's is installed elsewhere
    plugin = importlib.import_module(f"aios_adapter_{name}.plugin")
    assert plugin.aios_adapter().tested is versions.TESTED[name]


def test_the_docs_show_the_table() -> None:
    assert versions.markdown() in (ROOT / "docs" / "adapters.md").read_text()


def hooked(name: str) -> list[tuple[Any, str]]:
    """The classes and functions that an adapter asked for by name."""
    optional = host().installed[name].adapter.optional  # what these lack is no fault
    asked = dict.fromkeys(host().installed[name].patcher.asked)
    return [(owner, symbol) for owner, symbol in asked if getattr(owner, "__module__", None) not in optional]


@pytest.fixture
def frameworks() -> None:
    """Every framework imported as far as its adapter hooks it."""
    host().activate()
    for name in HERE:
        for module in host().installed[name].adapter.hooks:
            if module not in host().installed[name].adapter.optional:
                importlib.import_module(module)
    host().check()


@pytest.fixture
def again() -> Generator[None]:
    """The adapters put in anew at the end."""
    yield
    host().deactivate()
    host().activate()
    host().check()


@pytest.mark.usefixtures("frameworks", "again")
@pytest.mark.parametrize("name", HERE)
def test_every_symbol_that_moves_is_told(name: str) -> None:
    symbols = hooked(name)
    told = 0
    for owner, symbol in symbols:
        host().deactivate()
        if symbol not in vars(owner):
            continue  # inherited: its owner is asked for as well
        before = vars(owner)[symbol]
        try:
            delattr(owner, symbol)
        except (AttributeError, TypeError):
            continue
        inherited = hasattr(owner, symbol)
        try:
            host().activate()
            if not inherited:  # what a parent still has is hooked there
                with pytest.raises(AdapterError, match=symbol) as caught:
                    host().check()
                assert "fix:" in str(caught.value)
                told += 1
        finally:
            host().deactivate()  # while the symbol is away: what is undone is what was put in
            setattr(owner, symbol, before)
    assert told >= 2, symbols


@pytest.mark.usefixtures("frameworks", "again")
@pytest.mark.parametrize(
    ("name", "module", "symbol"),
    [
        ("langchain", "langchain_core.tools.base", "BaseTool"),
        ("autogen", "autogen_core.models", "ChatCompletionClient"),
        ("autogen", "autogen_core._single_threaded_agent_runtime", "PublishMessageEnvelope"),
        ("llamaindex", "llama_index.core.base.llms.base", "BaseLLM"),
        ("openai", "openai._base_client", "AsyncAPIClient"),
    ],
)
def test_a_class_that_moves_is_told(name: str, module: str, symbol: str) -> None:
    """Its adapter's own modules are read anew, as they are in a fresh process with that version."""
    code = (
        f"import importlib, sys\nmodule = importlib.import_module({module!r})\ndel module.{symbol}\n"
        "import aios_adapters as aios\n"
        f"for hooked in aios.host().installed[{name!r}].adapter.hooks:\n"
        "    try: importlib.import_module(hooked)\n"
        "    except ImportError: pass\n"
        "from aios_kernel.errors import AdapterError\n"
        "try: aios.agent(lambda: 1, name='x')()\n"
        "except AdapterError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stdout + done.stderr
    assert symbol in done.stdout
    assert "fix:" in done.stdout


def test_a_module_that_moves_is_told() -> None:
    """No import hook ever fires for it; the agent must not run without the kernel all the same."""
    from aios_adapters.adapter import Adapter

    adapter = Adapter("test", {"pytest": ("1", "99")}, {"pytest": lambda _: None, "pytest.moved": lambda _: None})
    state = plugins.Installed(adapter, Patcher("test"))
    assert state.missing() == "pytest.moved"
    optional = plugins.Installed(
        Adapter("test", {}, {"pytest.moved": lambda _: None}, optional=("pytest.moved",)), Patcher("test")
    )
    assert optional.missing() is None
    absent = plugins.Installed(Adapter("test", {}, {"no_such_framework.x": lambda _: None}), Patcher("test"))
    assert absent.missing() is None  # nobody has imported it: it is not there
    host_ = plugins.PluginHost()
    host_._installed["test"] = state
    with pytest.raises(AdapterError, match=r"pytest\.moved") as caught:
        host_.check()
    assert caught.value.fix == "pip install 'pytest>=1,<99'"


def test_a_version_outside_warns_and_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from aios_adapters.cli.app import app

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9" if name == "autogen-core" else real(name))
    told = CliRunner().invoke(app, ["doctor"]).output
    assert re.search(r"FAIL\s+autogen: autogen-core\s+9\.9\.9 \(tested >=0\.7,<0\.8\)", told), told
    with pytest.warns(UserWarning, match=r"autogen-core 9\.9\.9 is outside the range"):
        plugins._warn_outside_range(host().installed["autogen"].adapter)


def test_the_host_is_whole() -> None:
    host().check()
    assert aios.current() is None
