"""The plugin host: installs adapters when their frameworks arrive, warns, refuses, and can be undone."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Generator

import pytest

from aios_adapters import _agent
from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher
from aios_adapters.plugins import PluginHost, version_state
from aios_kernel.errors import AdapterError


class Plugin:
    """A plugin with one adapter."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    @hookimpl
    def aios_adapter(self) -> Adapter:
        return self.adapter


@pytest.fixture
def framework() -> Generator[str, None, None]:
    """The name of a module that does not exist until `arrive` is called."""
    name = "a_framework_for_tests"
    yield name
    sys.modules.pop(name, None)


def arrive(name: str) -> types.ModuleType:
    """Import the module for the first time."""
    import importlib.util

    spec = importlib.util.spec_from_loader(name, loader=None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module

    class Model:
        def ask(self) -> str:
            return "original"

    module.Model = Model  # type: ignore[attr-defined]
    import wrapt

    wrapt.notify_module_loaded(module)
    return module


def hosting(adapter: Adapter) -> PluginHost:
    host = PluginHost()
    host._active = True  # without the installed adapters: this host knows the one adapter only
    host.register(Plugin(adapter))
    return host


def test_hooks_run_when_the_framework_arrives_and_can_be_undone(framework: str) -> None:
    def install(patcher: Patcher) -> None:
        patcher.method(sys.modules[framework].Model, "ask", lambda scope, original, self: "rerouted")

    host = hosting(Adapter("test", {}, {framework: install}))
    module = arrive(framework)
    assert host.installed["test"].modules == [framework]
    assert module.Model().ask() == "original"  # no scope is on
    assert hasattr(module.Model.ask, "__aios_original__")
    host.deactivate()
    assert not hasattr(module.Model.ask, "__aios_original__")


def test_a_moved_symbol_fails_loudly(framework: str) -> None:
    def install(patcher: Patcher) -> None:
        patcher.method(sys.modules[framework].Model, "was_renamed", lambda *_: None)

    host = hosting(Adapter("test", {}, {framework: install}))
    arrive(framework)
    with pytest.raises(AdapterError, match="was_renamed") as caught:
        host.check()
    assert caught.value.fix


def test_an_installer_that_crashes_does_not_break_the_import(framework: str) -> None:
    def install(patcher: Patcher) -> None:
        raise RuntimeError("surprise")

    host = hosting(Adapter("test", {}, {framework: install}))
    arrive(framework)
    with pytest.raises(AdapterError, match="surprise"):
        host.check()


def test_a_version_outside_the_tested_range_warns(framework: str) -> None:
    host = hosting(Adapter("test", {"pytest": ("1.0", "2.0")}, {framework: lambda _: None}))
    with pytest.warns(UserWarning, match="pytest.*outside the range.*fix: pip install"):
        arrive(framework)
    host.check()


def test_version_ranges() -> None:
    version = importlib.metadata.version("pluggy")
    assert version_state("pluggy", ("1.0", "2.0")) == (version, True)
    assert version_state("pluggy", ("1.0", "1.1")) == (version, False)
    assert version_state("no-such-distribution", ("1.0", "2.0")) == (None, True)


def test_leaves_cover_present_and_future_subclasses() -> None:
    class Base:
        def ask(self) -> str:
            return "base"

    class Early(Base):
        def ask(self) -> str:
            return "early"

    patcher = Patcher("test")
    patcher.leaves(Base, {"ask": lambda scope, original, self: "rerouted"})

    class Late(Base):
        def ask(self) -> str:
            return "late"

    runner = _agent.Runner(_agent.AgentOptions("test"), "off")
    assert runner.begin() == (None, False)
    assert [hasattr(cls.ask, "__aios_original__") for cls in (Base, Early, Late)] == [True] * 3
    assert [cls().ask() for cls in (Base, Early, Late)] == ["base", "early", "late"]
    patcher.undo()
    assert not hasattr(Early.ask, "__aios_original__")

    class Later(Base):
        def ask(self) -> str:
            return "later"

    assert not hasattr(Later.ask, "__aios_original__")
