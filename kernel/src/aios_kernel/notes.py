"""The `memory.*` syscalls: whose namespace, then the memory manager. Who may, the guard has decided before.

Notes that a tainted program writes carry its taint in their metadata, and taint whoever reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from aios_kernel import syscalls
from aios_kernel._marks import marked, sources_in
from aios_kernel.calls import OpenCall
from aios_kernel.process import ProcessTable, Program
from aios_kernel.spaces import may_use, space_of
from aios_kernel.syscalls import Count, Interactions, Notes, Ok, Result, Right, Spaces

if TYPE_CHECKING:
    from aios_kernel.kernel import Handler
    from aios_kernel.managers import Managers

ALL = "all"
"""Names every namespace that the caller has the right on."""


class NoteService:
    """Calls the memory manager."""

    def __init__(self, managers: Managers, table: ProcessTable) -> None:
        self._table = table
        self._access = managers.access
        self._memory = managers.memory

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {
            syscalls.MemoryAdd: self._add,
            syscalls.MemorySearch: self._search,
            syscalls.MemoryGet: self._get,
            syscalls.MemoryUpdate: self._update,
            syscalls.MemoryDelete: self._delete,
            syscalls.MemorySpaces: self._list,
            syscalls.MemoryRollback: self._roll_back,
            syscalls.MemoryReindex: self._reindex,
            syscalls.MemoryRecord: self._record,
            syscalls.MemoryRecall: self._recall,
            syscalls.MemoryKeep: self._keep,
        }

    async def _add(self, open_call: OpenCall, call: syscalls.MemoryAdd) -> Result:
        program = open_call.program
        space = space_of(program, call.namespace)
        call = msgspec.structs.replace(call, metadata=marked(call.metadata, program.taint))
        return await self._memory.add(
            program.principal, space, program.agent, call, framework=program.framework, program=program.id
        )

    async def _search(self, open_call: OpenCall, call: syscalls.MemorySearch) -> Result:
        program = open_call.program
        if call.namespace != ALL:
            space = space_of(program, call.namespace)
            return _read_by(program, await self._memory.search(program.principal, space, call))
        found: list[syscalls.Note] = []
        for space in await self._all(program, "read"):
            found += (await self._memory.search(program.principal, space.namespace, call)).notes
        ranked = bool(call.query)
        found.sort(key=lambda note: -(note.score or 0.0) if ranked else note.created_s)
        return _read_by(program, Notes(notes=found[: call.k]))

    async def _get(self, open_call: OpenCall, call: syscalls.MemoryGet) -> Result:
        space = space_of(open_call.program, call.namespace)
        note = await self._memory.get(open_call.program.principal, space, call.id)
        open_call.program.mark(sources_in(note.metadata))
        return note

    async def _update(self, open_call: OpenCall, call: syscalls.MemoryUpdate) -> Result:
        program = open_call.program
        space = space_of(program, call.namespace)
        note = await self._memory.update(program.principal, space, call, by=program.agent, taint=[*program.taint])
        program.mark(sources_in(note.metadata))  # it is given back whole
        return note

    async def _delete(self, open_call: OpenCall, call: syscalls.MemoryDelete) -> Result:
        program = open_call.program
        space = space_of(program, call.namespace)
        return Count(count=await self._memory.delete(program.principal, space, call.id, by=program.agent))

    async def _list(self, open_call: OpenCall, call: syscalls.MemorySpaces) -> Result:
        return Spaces(spaces=await self._memory.spaces(open_call.program.principal))

    async def _roll_back(self, open_call: OpenCall, call: syscalls.MemoryRollback) -> Result:
        program = open_call.program
        if call.namespace == ALL:
            spaces = [space.namespace for space in await self._all(program, "write")]
        else:
            spaces = [space_of(program, call.namespace)]
        undone = 0
        for space in spaces:
            undone += await self._memory.roll_back(program.principal, space, call.agent, call.since_s, by=program.agent)
        return Count(count=undone)

    async def _reindex(self, open_call: OpenCall, call: syscalls.MemoryReindex) -> Result:
        if call.start:
            return await self._memory.reindex(open_call.program.principal)
        return await self._memory.progress()

    async def _record(self, open_call: OpenCall, call: syscalls.MemoryRecord) -> Result:
        return await self._memory.short_term.record(_owner(open_call.program), call.role, call.text)

    async def _recall(self, open_call: OpenCall, call: syscalls.MemoryRecall) -> Result:
        program = open_call.program
        owner = _owner(program, call.program)
        found = Interactions(interactions=await self._memory.short_term.recall(owner, call.first, call.last))
        program.mark(self._taint_of(owner[2]))
        return found

    def _taint_of(self, run: str) -> list[str]:
        """What had reached another run; of one that is not known any more, nobody can say that nothing had."""
        known = self._table.known(run)
        if known is not None:
            return [*known.taint]
        return [f"log/{run}"] if self._access.policy.follows_taint else []

    async def _keep(self, open_call: OpenCall, call: syscalls.MemoryKeep) -> Result:
        await self._memory.short_term.keep(_owner(open_call.program))
        return Ok()

    async def _all(self, program: Program, right: Right) -> list[syscalls.MemorySpace]:
        """The namespaces that the caller has the right on, and need not ask about."""
        spaces = await self._memory.spaces(program.principal)
        return [space for space in spaces if may_use(self._access, program, space.namespace, right, "memory")]


def _read_by(program: Program, notes: Notes) -> Notes:
    """Notes on their way to a program, which is tainted with them."""
    program.mark(source for note in notes.notes for source in sources_in(note.metadata))
    return notes


def _owner(program: Program, run: str | None = None) -> tuple[str, str, str]:
    """Whose interaction log: the program's own, or that of another run of its agent."""
    return program.principal, program.agent, run or program.id
