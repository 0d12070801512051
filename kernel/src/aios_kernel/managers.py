"""The managers of one kernel, built from the configuration; the kernel hands them what they need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aios_kernel.access import AccessManager, AuditLog
from aios_kernel.config import Config, home_of
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

    async def close(self) -> None:
        """Write everything down and close; the audit log last, since closing others is audited too."""
        await self.tools.close()
        await self.memory.close()
        await self.storage.close()
        await self.access.close()
        await self.audit.close()


def build_managers(config: Config, plugins: Plugins) -> Managers:
    """Open everything below the data directory. Blocks for as long as the databases take."""
    try:
        from aios_kernel.memory import MemoryManager
        from aios_kernel.tools import ToolGrants, ToolRegistry
    except ImportError:
        return _temp(config)

    home = home_of(config)
    known = plugins.named("aios_kernel_embedders")
    embedder = known.get(config.embedder, known["sentence-transformers"])(config)
    vectors = plugins.pick("aios_kernel_vectors", "vectors", config.vectors)
    return Managers(
        access=AccessManager(home / "access.db"),
        audit=AuditLog(home / "audit.db"),
        memory=MemoryManager(home, embedder, vectors),
        storage=plugins.pick("aios_kernel_storage", "storage", config.storage)(home),
        tools=ToolRegistry(plugins.tools()),
        grants=ToolGrants(config.tool_timeout_s),
    )


def _temp(config):  # TEMP
    import time, uuid
    from aios_kernel.syscalls import ToolGrant, Note, Notes, FileInfo, FileData, Files, Count
    from aios_kernel.errors import NotFound

    class G:
        def __init__(s):
            s.d = {}

        def begin(s, program, call, now):
            g = uuid.uuid4().hex
            s.d[g] = (call.name, now)
            return ToolGrant(g, call.timeout_s or 300.0)

        def end(s, program, call, now):
            return now - s.d.pop(call.grant)[1]

        def expired(s, now):
            return []

        def drop(s, p):
            pass

    class T:
        def specs(s):
            return []

        async def close(s):
            pass

    class M:
        def __init__(s):
            s.d = {}

        async def add(s, principal, ns, author, call):
            n = Note(call.id or uuid.uuid4().hex, ns, call.text, author, call.metadata, time.time())
            s.d[(principal, ns, n.id)] = n
            return n

        async def search(s, principal, ns, call):
            return Notes(
                [
                    n
                    for (p, m, i), n in s.d.items()
                    if (p, m) == (principal, ns) and all(n.metadata.get(k) == v for k, v in call.filter.items())
                ][: call.k]
            )

        async def get(s, principal, ns, call):
            try:
                return s.d[(principal, ns, call.id)]
            except KeyError:
                raise NotFound("no note")

        async def update(s, principal, ns, call):
            import msgspec

            n = await s.get(principal, ns, call)
            n = msgspec.structs.replace(
                n,
                text=n.text if call.text is None else call.text,
                metadata=n.metadata if call.metadata is None else call.metadata,
            )
            s.d[(principal, ns, call.id)] = n
            return n

        async def delete(s, principal, ns, call):
            ks = [k for k in s.d if k[:2] == (principal, ns) and call.id in (None, k[2])]
            for k in ks:
                del s.d[k]
            return Count(len(ks))

        async def close(s):
            pass

    class S:
        def __init__(s):
            s.d = {}

        async def put(s, p, o, path, data):
            v = s.d.setdefault((p, o, path), [])
            i = FileInfo(path, len(v) + 1, len(data), time.time())
            v.append(FileData(i, data))
            return i

        async def get(s, p, o, path, version):
            v = s.d.get((p, o, path))
            if not v:
                raise NotFound("no file")
            return v[(version or len(v)) - 1]

        async def list(s, p, o, prefix):
            return Files([v[-1].info for k, v in s.d.items() if k[:2] == (p, o) and k[2].startswith(prefix)])

        async def versions(s, p, o, path):
            return Files([x.info for x in reversed(s.d.get((p, o, path), []))])

        async def delete(s, p, o, path):
            ks = [k for k in s.d if k[:2] == (p, o) and (k[2] == path or k[2].startswith(path + "/"))]
            for k in ks:
                del s.d[k]
            return Count(len(ks))

        async def close(s):
            pass

    home = home_of(config)
    return Managers(AccessManager(home / "access.db"), AuditLog(home / "audit.db"), M(), S(), T(), G())
