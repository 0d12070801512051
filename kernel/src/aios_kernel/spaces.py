"""The `storage.*` syscalls and the audit log's: whose space, then the manager. Who may, the guard has decided before.

A space is `agent/<name>` or `group/<name>` and what is below; plain `group` is the caller's own group's. An agent of a
framework inside another (`team/calc`) acts with the rights of the outermost one, whose name comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from aios_kernel import syscalls
from aios_kernel.access import Resource
from aios_kernel.calls import OpenCall
from aios_kernel.process import ProcessTable, Program
from aios_kernel.storage.protocol import check_path
from aios_kernel.syscalls import AuditRecords, AuditVerdict, Count, Files, Result, Right

if TYPE_CHECKING:
    from aios_kernel.access import AccessManager
    from aios_kernel.kernel import Handler
    from aios_kernel.managers import Managers

S = TypeVar("S", bound=msgspec.Struct)


class SpaceService:
    """Calls the managers; `table` knows what had reached the runs that a listing is about."""

    def __init__(self, managers: Managers, table: ProcessTable) -> None:
        self._access = managers.access
        self._audit = managers.audit
        self._table = table
        self._marks = managers.access.marks
        self._storage = managers.storage

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {
            syscalls.StoragePut: self._put,
            syscalls.StorageGet: self._get_file,
            syscalls.StorageList: self._list,
            syscalls.StorageVersions: self._versions,
            syscalls.StorageRollback: self._rollback,
            syscalls.StorageDelete: self._delete_file,
            syscalls.AccessAudit: self._read_audit,
            syscalls.AccessVerify: self._verify_audit,
        }

    # --- storage ----------------------------------------------------------------------------------------------------

    async def _put(self, open_call: OpenCall, call: syscalls.StoragePut) -> Result:
        program, owner = open_call.program, space_of(open_call.program, call.owner)
        if not program.taint:
            return await self._storage.put(program.principal, owner, call.path, call.data)
        check_path(call.path)
        async with self._marks.changing:  # the mark first: a file may be marked and not written, never the other way
            await self._marks.add(program.principal, owner, call.path, program.taint)
            return await self._storage.put(program.principal, owner, call.path, call.data)

    async def _get_file(self, open_call: OpenCall, call: syscalls.StorageGet) -> Result:
        principal, owner = open_call.program.principal, space_of(open_call.program, call.owner)
        found = await self._storage.get(principal, owner, call.path, call.version)
        open_call.program.mark(self._marks.of(principal, owner, [call.path]))
        return found

    async def _list(self, open_call: OpenCall, call: syscalls.StorageList) -> Result:
        principal, owner = open_call.program.principal, space_of(open_call.program, call.owner)
        files = await self._storage.list(principal, owner, call.prefix)
        # A path is text that a tainted run wrote, too.
        open_call.program.mark(self._marks.of(principal, owner, (file.path for file in files)))
        return Files(files=files)

    async def _versions(self, open_call: OpenCall, call: syscalls.StorageVersions) -> Result:
        owner = space_of(open_call.program, call.owner)
        return Files(files=await self._storage.versions(open_call.program.principal, owner, call.path))

    async def _rollback(self, open_call: OpenCall, call: syscalls.StorageRollback) -> Result:
        owner = space_of(open_call.program, call.owner)
        return await self._storage.rollback(open_call.program.principal, owner, call.path, call.version)

    async def _delete_file(self, open_call: OpenCall, call: syscalls.StorageDelete) -> Result:
        principal, owner = open_call.program.principal, space_of(open_call.program, call.owner)
        async with self._marks.changing:
            count = await self._storage.delete(principal, owner, call.path)
            await self._marks.remove(principal, owner, call.path)
        return Count(count=count)

    # --- the audit log ----------------------------------------------------------------------------------------------

    async def _read_audit(self, open_call: OpenCall, call: syscalls.AccessAudit) -> Result:
        program = open_call.program
        records = await self._audit.tail(program.principal, call.limit, call.agent, call.before)
        self._look_at(program, {record.program for record in records})
        return AuditRecords(records=records)

    def _look_at(self, program: Program, runs: set[str]) -> None:
        """Resources in records are named by who asked for them; of a run that is not known any more, maybe as told."""
        found = [self._table.known(run) for run in runs]
        program.look_at(each for each in found if each is not None)
        if None in found and self._access.policy.follows_taint and not program.terminal:
            program.mark(["audit"])

    async def _verify_audit(self, open_call: OpenCall, call: syscalls.AccessVerify) -> Result:
        del open_call, call
        return AuditVerdict(**(await self._audit.verify())._asdict())


def space_of(program: Program, named: str | None) -> str:
    """The space that a call is about; None means the caller's own, `group` its group's."""
    return f"group/{program.group}" if named == "group" else named or f"agent/{program.agent}"


def may_use(access: AccessManager, program: Program, named: str | None, right: Right, store: str) -> bool:
    """Whether a program may use a space's notes or files without asking anybody. Raises InvalidRequest."""
    resource = f"{store}/{space_of(program, named)}"
    Resource.parse(resource)
    return access.decide(program.chain(), right, resource, tainted=bool(program.taint)).effect == "allow"
