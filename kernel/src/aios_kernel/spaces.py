"""The `storage.*` and `access.*` syscalls: whose space, who may, then the manager.

A space is `agent/<name>` or `group/<name>` and what is below; plain `group` is the caller's own group's. An agent of a
framework inside another (`team/calc`) acts with the rights of the outermost one, whose name comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec

from aios_kernel import syscalls
from aios_kernel.calls import OpenCall
from aios_kernel.process import Program
from aios_kernel.syscalls import AuditRecords, AuditVerdict, Count, Files, Ok, Result, Right

if TYPE_CHECKING:
    from aios_kernel.access import AccessManager
    from aios_kernel.kernel import Handler
    from aios_kernel.managers import Managers

S = TypeVar("S", bound=msgspec.Struct)


class SpaceService:
    """Checks access and calls the managers."""

    def __init__(self, managers: Managers) -> None:
        self._access = managers.access
        self._audit = managers.audit
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
            syscalls.AccessGrant: self._grant,
            syscalls.AccessRevoke: self._revoke,
            syscalls.AccessAudit: self._read_audit,
            syscalls.AccessVerify: self._verify_audit,
        }

    def _space(self, program: Program, named: str | None, right: Right) -> str:
        return allowed_space(self._access, program, named, right)

    # --- storage ----------------------------------------------------------------------------------------------------

    async def _put(self, open_call: OpenCall, call: syscalls.StoragePut) -> Result:
        owner = self._space(open_call.program, call.owner, "write")
        return await self._storage.put(open_call.program.principal, owner, call.path, call.data)

    async def _get_file(self, open_call: OpenCall, call: syscalls.StorageGet) -> Result:
        owner = self._space(open_call.program, call.owner, "read")
        return await self._storage.get(open_call.program.principal, owner, call.path, call.version)

    async def _list(self, open_call: OpenCall, call: syscalls.StorageList) -> Result:
        owner = self._space(open_call.program, call.owner, "read")
        return Files(files=await self._storage.list(open_call.program.principal, owner, call.prefix))

    async def _versions(self, open_call: OpenCall, call: syscalls.StorageVersions) -> Result:
        owner = self._space(open_call.program, call.owner, "read")
        return Files(files=await self._storage.versions(open_call.program.principal, owner, call.path))

    async def _rollback(self, open_call: OpenCall, call: syscalls.StorageRollback) -> Result:
        owner = self._space(open_call.program, call.owner, "write")
        return await self._storage.rollback(open_call.program.principal, owner, call.path, call.version)

    async def _delete_file(self, open_call: OpenCall, call: syscalls.StorageDelete) -> Result:
        owner = self._space(open_call.program, call.owner, "write")
        return Count(count=await self._storage.delete(open_call.program.principal, owner, call.path))

    # --- access -----------------------------------------------------------------------------------------------------

    async def _grant(self, open_call: OpenCall, call: syscalls.AccessGrant) -> Result:
        program = open_call.program
        await self._access.grant(
            program.principal, root_of(program), call.to, call.resource, call.rights, group=program.group
        )
        return Ok()

    async def _revoke(self, open_call: OpenCall, call: syscalls.AccessRevoke) -> Result:
        program = open_call.program
        await self._access.revoke(
            program.principal, root_of(program), call.to, call.resource, call.rights, group=program.group
        )
        return Ok()

    async def _read_audit(self, open_call: OpenCall, call: syscalls.AccessAudit) -> Result:
        principal = open_call.program.principal
        return AuditRecords(records=await self._audit.tail(principal, call.limit, call.agent, call.before))

    async def _verify_audit(self, open_call: OpenCall, call: syscalls.AccessVerify) -> Result:
        del open_call, call
        return AuditVerdict(**(await self._audit.verify())._asdict())


def allowed_space(access: AccessManager, program: Program, named: str | None, right: Right) -> str:
    """The space that a call is about, once its caller may use it; None means the caller's own.

    Raises AccessDenied, or InvalidRequest for a malformed name.
    """
    space = f"group/{program.group}" if named == "group" else named or f"agent/{program.agent}"
    access.check(program.principal, root_of(program), program.group, space, right)
    return space


def root_of(program: Program) -> str:
    """The agent whose rights a program has: the outermost, of `team/calc` the team."""
    return program.agent.partition("/")[0]
