"""The managers of one kernel, built from the configuration; the kernel hands them what they need."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aios_kernel.access import AccessManager, AuditLog
from aios_kernel.config import Config, home_of, policy_of
from aios_kernel.errors import ConfigError
from aios_kernel.process import Program

if TYPE_CHECKING:
    from aios_kernel.memory import MemoryManager
    from aios_kernel.plugins import Plugins
    from aios_kernel.storage import Storage
    from aios_kernel.tools import Confine, JobManager, ToolGrants, ToolRegistry, ToolSource
    from aios_kernel.tools.file import ToolsFile


@dataclass(frozen=True, slots=True)
class Managers:
    """Memory, storage, tools and access. None of them knows another."""

    access: AccessManager
    audit: AuditLog
    memory: MemoryManager
    storage: Storage
    tools: ToolRegistry
    grants: ToolGrants
    jobs: JobManager

    async def start(self) -> None:
        """Begin what goes on in the background, on the kernel's loop."""
        await self.tools.start()
        self.jobs.start()

    def drop(self, program: Program) -> None:
        """Free what a program that has ended still holds."""
        self.grants.drop(program.id)
        self.memory.end_program(program.principal, program.agent, program.id)

    async def close(self) -> None:
        """Write everything down and close; the audit log last, since closing others is audited too."""
        async with contextlib.AsyncExitStack() as closing:  # one that fails to close must not keep the others open
            for close in (
                self.audit.close,
                self.access.close,
                self.storage.close,
                self.memory.close,
                self.tools.close,
                self.jobs.close,
            ):
                closing.push_async_callback(close)


def build_managers(config: Config, plugins: Plugins) -> Managers:
    """Open everything below the data directory. Blocks for as long as the databases take."""
    from aios_kernel.memory import MemoryManager
    from aios_kernel.tools import JobManager, Slots, ToolGrants, ToolRegistry, ToolStore
    from aios_kernel.tools.file import read_tools

    home, slots, file = home_of(config), Slots(), read_tools(config)
    store = ToolStore(home / "tools.db")
    tools = ToolRegistry(
        plugins.tools(),
        store=store,
        slots=slots,
        default_timeout_s=config.tool_timeout_s,
        sources=_tool_sources(config, plugins, file),
        levels=_isolation_levels(config, plugins),
    )
    grants = ToolGrants(config.tool_timeout_s, slots=slots, rules=file.local)
    known = plugins.named("aios_kernel_embedders")
    embedder = known.get(config.embedder, known["sentence-transformers"])(config)
    rerankers = plugins.named("aios_kernel_rerankers")
    reranker = rerankers.get(config.reranker, rerankers["cross-encoder"])(config)
    vectors = plugins.pick("aios_kernel_vectors", "vectors", config.vectors)
    return Managers(
        access=AccessManager(home / "access.db", policy_of(config), required=bool(config.access)),
        audit=AuditLog(home / "audit.db", Path(config.audit_seals).expanduser() if config.audit_seals else None),
        memory=MemoryManager(
            home,
            embedder,
            functools.partial(vectors, home),
            reranker=reranker,
            index_from=config.index_from,
            log_bytes=config.log_bytes,
        ),
        storage=plugins.pick("aios_kernel_storage", "storage", config.storage)(config),
        tools=tools,
        grants=grants,
        jobs=JobManager(tools, store, slots, home / "jobs"),
    )


def _tool_sources(config: Config, plugins: Plugins, file: ToolsFile) -> dict[str, ToolSource]:
    """What the tools file asks for, by section."""
    makers = plugins.named("aios_kernel_tool_sources")
    wanted = [section for section in ("commands", "python", "mcp") if getattr(file, section)]
    for section in wanted:
        if section not in makers:
            raise ConfigError(
                f"no plugin of this kernel makes tools of [{section}] in the tools file",
                fix=f"remove [{section}], or install the plugin that serves it (aios plugins lists them)",
            )
    return {section: makers[section](config, file) for section in wanted}


def _isolation_levels(config: Config, plugins: Plugins) -> dict[str, Callable[[], Confine]]:
    factories = plugins.named("aios_kernel_isolation")
    return {level: functools.partial(factory, config) for level, factory in factories.items()}
