"""The plugin host: finds adapters by entry point and installs each when its framework is imported."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from aios_adapters import hookspecs
from aios_kernel.errors import AdapterError

if TYPE_CHECKING:
    from aios_adapters.adapter import Adapter, VersionRange
    from aios_adapters.patching import Patcher

GROUP = "aios_adapters"


@dataclass(slots=True)
class Installed:
    """An adapter and how far its installation got."""

    adapter: Adapter
    patcher: Patcher
    modules: list[str] = field(default_factory=list[str])
    """Hooked modules that were imported and patched."""
    error: AdapterError | None = None
    found: set[str] = field(default_factory=set[str])
    """Hooked modules that exist, imported or not."""

    def missing(self) -> str | None:
        """A module that should be hooked and is not where it was, as far as what is imported tells; or None."""
        for module in self.adapter.hooks:
            if module in self.found or module in self.adapter.optional:
                continue
            there = _is_there(module)
            if there is False:
                return module
            if there:
                self.found.add(module)
        return None


class PluginHost:
    """Holds the plugins and the state of every adapter. One a process; see `host()`."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._lock = threading.RLock()
        self._installed: dict[str, Installed] = {}
        self._broken: dict[str, AdapterError] = {}
        self._active = False

    @property
    def hook(self) -> Any:
        """Call the hooks: `host.hook.aios_llm_request(...)`."""
        return self._manager.hook

    @property
    def installed(self) -> dict[str, Installed]:
        """State of the adapters by name."""
        return dict(self._installed)

    @property
    def broken(self) -> dict[str, AdapterError]:
        """Plugins that could not be loaded, by name."""
        return dict(self._broken)

    def register(self, plugin: object, name: str | None = None) -> None:
        """Add a plugin object by hand (tests, evals, notebooks)."""
        self._manager.register(plugin, name)
        if self._active:
            self._adopt_new()

    def unregister(self, plugin: object) -> None:
        """Take a plugin out again; its adapter's patches stay until `deactivate`."""
        self._manager.unregister(plugin)

    def activate(self) -> None:
        """Load the plugins and watch for their frameworks. Idempotent; importing nothing of a framework itself."""
        with self._lock:
            if self._active:
                return
            self._load_entry_points()
            if not self._manager.has_plugin("python"):
                from aios_adapters import _python  # here: it needs the scope, which needs this module

                self._manager.register(_python, "python")
            self._active = True
            self._adopt_new()

    def deactivate(self) -> None:
        """Undo every patch (import hooks stay, but do nothing until the next `activate`)."""
        with self._lock:
            for state in reversed(self._installed.values()):
                state.patcher.undo()
            self._installed.clear()
            self._active = False

    def check(self) -> None:
        """Raise the AdapterError of a framework that is imported but could not be hooked: never bypass silently."""
        for error in self._broken.values():
            raise error
        for state in self._installed.values():
            if state.error is None and (module := state.missing()) is not None:
                state.error = _moved(state.adapter, module)
            if state.error is not None:
                raise state.error

    def _load_entry_points(self) -> None:
        for entry in importlib.metadata.entry_points(group=GROUP):
            if entry.name in self._broken or self._manager.has_plugin(entry.name):
                continue
            try:
                self._manager.register(entry.load(), entry.name)
            except Exception as error:  # noqa: BLE001 - importing us must not fail for a plugin; `check` raises this
                self._broken[entry.name] = AdapterError(
                    f'the plugin "{entry.name}" ({entry.value}) cannot be loaded: {type(error).__name__}: {error}',
                    fix="aios doctor; reinstall or uninstall the plugin",
                )

    def _adopt_new(self) -> None:
        for adapter in self._manager.hook.aios_adapter():
            if adapter is not None and adapter.name not in self._installed:
                self._watch(adapter)

    def _watch(self, adapter: Adapter) -> None:
        # Imported here: patching needs the scope, which needs this module.
        import wrapt

        from aios_adapters.patching import Patcher

        state = self._installed[adapter.name] = Installed(adapter, Patcher(adapter.name))
        for module in adapter.hooks:
            wrapt.register_post_import_hook(functools.partial(self._imported, state, module), module)

    def _imported(self, state: Installed, module: str, _imported_module: Any) -> None:
        with self._lock:
            if self._installed.get(state.adapter.name) is not state or module in state.modules:
                return
            if not state.modules:
                _warn_outside_range(state.adapter)
            try:
                state.adapter.hooks[module](state.patcher)
                state.modules.append(module)
            except AdapterError as error:
                state.error = error
            except Exception as error:  # noqa: BLE001 - importing a framework must not fail; `check` raises this
                state.error = AdapterError(
                    f"the {state.adapter.name} adapter failed to hook {module}: {type(error).__name__}: {error}",
                    fix="aios doctor",
                )


def _is_there(module: str) -> bool | None:
    """Whether a module exists; None when no package around it is imported, so that nobody has asked for it yet."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        name = ".".join(parts[:size])
        if name in sys.modules:
            if size == len(parts):
                return True
            inner = importlib.util.find_spec(".".join(parts[: size + 1]))
            # One level down is all that can be told without importing it.
            return inner is not None if size + 1 == len(parts) or inner is None else None
    return None


def _moved(adapter: Adapter, module: str) -> AdapterError:
    ranges = " ".join(f"'{name}>={low},<{high}'" for name, (low, high) in adapter.tested.items())
    return AdapterError(
        f"the {adapter.name} adapter cannot hook {module}: there is no such module in the installed version",
        fix=f"pip install {ranges}" if ranges else "aios doctor",
    )


@functools.cache
def host() -> PluginHost:
    """The process's plugin host."""
    return PluginHost()


def version_state(distribution: str, tested: VersionRange) -> tuple[str | None, bool]:
    """The installed version of a distribution (None: absent) and whether it is in the tested range."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None, True
    return version, in_range(version, tested)


def in_range(version: str, tested: VersionRange) -> bool:
    """Whether a version lies in a tested range."""
    low, high = tested
    return _key(low) <= _key(version) < _key(high)


def _warn_outside_range(adapter: Adapter) -> None:
    for distribution, tested in adapter.tested.items():
        version, inside = version_state(distribution, tested)
        if version is not None and not inside:
            warnings.warn(
                f"{distribution} {version} is outside the range that the {adapter.name} adapter was tested with "
                f"(>={tested[0]},<{tested[1]}); fix: pip install '{distribution}>={tested[0]},<{tested[1]}'",
                stacklevel=2,
            )


def _key(version: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
