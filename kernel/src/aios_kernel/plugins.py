"""What a plugin of the entry-point group `aios_kernel` can provide: engines, policies, backends, tools.

Built-in parts come by the same road as third parties' (see `builtin.py`). Each hook gives factories by name.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pluggy

from aios_kernel.errors import ConfigError

if TYPE_CHECKING:
    from aios_kernel.chat.protocol import LoadedModel
    from aios_kernel.config import Config
    from aios_kernel.memory import Embedder, Reranker, VectorIndex
    from aios_kernel.scheduler.protocol import Options, Policy
    from aios_kernel.storage import Storage
    from aios_kernel.tools import Confine, HostedTool, Isolation, ToolSource
    from aios_kernel.tools.file import ToolsFile

GROUP = "aios_kernel"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

PolicyFactory: TypeAlias = "Callable[[Options], Policy]"
EngineFactory: TypeAlias = "Callable[[Config], LoadedModel]"
StorageFactory: TypeAlias = "Callable[[Config], Storage]"
VectorFactory: TypeAlias = "Callable[[Path, str], VectorIndex]"
EmbedderFactory: TypeAlias = "Callable[[Config], Embedder]"
RerankerFactory: TypeAlias = "Callable[[Config], Reranker | None]"
ToolSourceFactory: TypeAlias = "Callable[[Config, ToolsFile], ToolSource]"
IsolationFactory: TypeAlias = "Callable[[Config], Confine]"
F = TypeVar("F")


class Hooks:
    """The hook specifications. Every hook returns factories by the name used in the configuration."""

    @hookspec
    def aios_kernel_engines(self) -> Mapping[str, EngineFactory]:  # type: ignore[empty-body]
        """Model loaders by scheme: `model = "fake"` or `model = "scheme:rest"` picks one, others go to `torch`."""

    @hookspec
    def aios_kernel_policies(self) -> Mapping[str, PolicyFactory]:  # type: ignore[empty-body]
        """Scheduling policies: a factory takes the policy's options."""

    @hookspec
    def aios_kernel_storage(self) -> Mapping[str, StorageFactory]:  # type: ignore[empty-body]
        """Storage backends: a factory takes the configuration."""

    @hookspec
    def aios_kernel_vectors(self) -> Mapping[str, VectorFactory]:  # type: ignore[empty-body]
        """Vector indexes of the memory: a factory takes the data directory and the embedder's name."""

    @hookspec
    def aios_kernel_embedders(self) -> Mapping[str, EmbedderFactory]:  # type: ignore[empty-body]
        """Embedders: a factory takes the configuration."""

    @hookspec
    def aios_kernel_rerankers(self) -> Mapping[str, RerankerFactory]:  # type: ignore[empty-body]
        """Rerankers of the memory: a factory takes the configuration. Other values are a model's folder."""

    @hookspec
    def aios_kernel_tools(self) -> list[HostedTool]:  # type: ignore[empty-body]
        """Tools that the kernel hosts."""

    @hookspec
    def aios_kernel_tool_sources(self) -> Mapping[str, ToolSourceFactory]:  # type: ignore[empty-body]
        """What makes tools of the tools file, by section: a factory takes the configuration and the file.

        It is called only for a section that has entries.
        """

    @hookspec
    def aios_kernel_isolation(self) -> Mapping[Isolation, IsolationFactory]:  # type: ignore[empty-body]
        """Isolation levels: a factory takes the configuration; it raises Unsupported where the machine lacks the level.

        It is called when the first tool asks for the level.
        """


class Plugins:
    """The plugins of one kernel. Unlike the agents' side, one that cannot be loaded stops the kernel's start."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(Hooks)
        for entry in importlib.metadata.entry_points(group=GROUP):
            try:
                self._manager.register(entry.load(), entry.name)
            except Exception as error:
                raise ConfigError(
                    f'the kernel plugin "{entry.name}" ({entry.value}) cannot be loaded: {error}',
                    fix="reinstall or uninstall that plugin",
                ) from error

    def register(self, plugin: object, name: str) -> None:
        """Add a plugin that no package announces."""
        self._manager.register(plugin, name)

    def pick(self, hook: str, key: str, name: str) -> Any:
        """The factory called `name` among what a hook gives. Raises ConfigError that lists the names."""
        found = self.named(hook)
        if name not in found:
            raise ConfigError(
                f'{key} = "{name}" is not known; there are: {", ".join(sorted(found))}',
                fix=f"set {key} to one of them, or install the plugin that provides it",
            )
        return found[name]

    def named(self, hook: str) -> dict[str, Any]:
        """Everything a hook gives, by name; third parties may replace built-ins."""
        found: dict[str, Any] = {}
        for mapping in getattr(self._manager.hook, hook)():
            found.update({name: factory for name, factory in mapping.items() if name not in found})
        return found

    def tools(self) -> list[HostedTool]:
        """All hosted tools."""
        return [tool for tools in self._manager.hook.aios_kernel_tools() for tool in tools]

    def names(self) -> list[str]:
        """The plugins' names."""
        return sorted(name for name, _ in self._manager.list_name_plugin())
