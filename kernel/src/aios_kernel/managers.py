"""The managers of one kernel, built from the configuration; the kernel hands them what they need."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aios_kernel.access import AccessManager, AuditLog
from aios_kernel.config import Config, home_of, policy_of
from aios_kernel.process import Program

if TYPE_CHECKING:
    from aios_kernel.memory import MemoryManager
    from aios_kernel.plugins import Plugins
    from aios_kernel.storage import Storage
    from aios_kernel.tools import ToolGrants, ToolRegistry


@dataclass(frozen=True, slots=True)
class Managers:
    """Memory, storage, tools and access. None of them knows another."""

    access: AccessManager
    audit: AuditLog
    memory: MemoryManager
    storage: Storage
    tools: ToolRegistry
    grants: ToolGrants

    def drop(self, program: Program) -> None:
        """Free what a program that has ended still holds."""
        self.grants.drop(program.id)
        self.memory.end_program(program.principal, program.agent, program.id)

    async def close(self) -> None:
        """Write everything down and close; the audit log last, since closing others is audited too."""
        async with contextlib.AsyncExitStack() as closing:  # one that fails to close must not keep the others open
            for close in (self.audit.close, self.access.close, self.storage.close, self.memory.close, self.tools.close):
                closing.push_async_callback(close)


def build_managers(config: Config, plugins: Plugins) -> Managers:
    """Open everything below the data directory. Blocks for as long as the databases take."""
    from aios_kernel.memory import MemoryManager
    from aios_kernel.tools import ToolGrants, ToolRegistry

    home = home_of(config)
    known = plugins.named("aios_kernel_embedders")
    embedder = known.get(config.embedder, known["sentence-transformers"])(config)
    rerankers = plugins.named("aios_kernel_rerankers")
    reranker = rerankers.get(config.reranker, rerankers["cross-encoder"])(config)
    vectors = plugins.pick("aios_kernel_vectors", "vectors", config.vectors)
    return Managers(
        access=AccessManager(home / "access.db", policy_of(config), required=bool(config.access)),
        audit=AuditLog(home / "audit.db", Path(config.audit_seals).expanduser() if config.audit_seals else None),
        memory=MemoryManager(
            home, embedder, functools.partial(vectors, home), reranker=reranker, log_bytes=config.log_bytes
        ),
        storage=plugins.pick("aios_kernel_storage", "storage", config.storage)(config),
        tools=ToolRegistry(plugins.tools(), default_timeout_s=config.tool_timeout_s),
        grants=ToolGrants(config.tool_timeout_s),
    )
