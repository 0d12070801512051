"""Default-deny access to the spaces of agents and groups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, final

import apsw

from aios_kernel._database import Database
from aios_kernel._names import split_name
from aios_kernel.access.resource import Resource
from aios_kernel.errors import AccessDenied, InvalidRequest
from aios_kernel.failpoints import failpoint
from aios_kernel.syscalls import Right

_SCHEMA = """
CREATE TABLE grants (
    principal TEXT NOT NULL,
    grantee TEXT NOT NULL,
    resource TEXT NOT NULL,
    right TEXT NOT NULL CHECK (right IN ('read', 'write')),
    granted_by TEXT NOT NULL,
    created_s REAL NOT NULL,
    PRIMARY KEY (principal, grantee, resource, right)
) STRICT, WITHOUT ROWID;
"""
_VERSION = 1
_RIGHTS: frozenset[Right] = frozenset({"read", "write"})


class _Grant(NamedTuple):
    principal: str
    grantee: str
    resource: str
    right: str


@final
class AccessManager:
    """Decides who may read and write which space; grants are durable and cached, so that a decision takes microseconds.

    An agent owns `agent/<its name>` and all below it; the agents of a group own `group/<its name>` together. Anything
    else needs a grant of an owner, on the space itself or on one that contains it. Spaces of another principal have no
    name here: every question is asked within the caller's principal.
    """

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _SCHEMA, _VERSION)
        rows = self._db.view(lambda db: list(db.execute("SELECT principal, grantee, resource, right FROM grants")))
        # Replaced as a whole by the writer thread, read by the kernel's loop: no lock, never half a change.
        self._grants: frozenset[_Grant] = frozenset(_Grant(*map(str, row)) for row in rows)

    def check(self, principal: str, agent: str, group: str, resource: str, right: Right) -> None:
        """Return if the agent holds the right on the resource.

        Raises:
            AccessDenied: it does not; the fix names the grant that would help.
            InvalidRequest: the resource or the right is malformed.
        """
        wanted = Resource.parse(resource)
        if right not in _RIGHTS:
            raise InvalidRequest(f"{right!a} is no right", fix='use "read" or "write"')
        if wanted.owned_by(agent, group):
            return
        if any(_Grant(principal, agent, space, right) in self._grants for space in wanted.within()):
            return
        owner = f'agent "{wanted.name}"' if wanted.kind == "agent" else f'an agent of group "{wanted.name}"'
        raise AccessDenied(
            f'agent "{agent}" may not {right} {resource}',
            agent=agent,
            fix=f'let {owner} call access.grant with to="{agent}", resource="{resource}", rights=["{right}"]',
        )

    async def grant(
        self, principal: str, owner: str, to: str, resource: str, rights: Sequence[Right], *, group: str | None = None
    ) -> None:
        """Let agent `to` use a space of agent `owner`, or of the owner's `group`; durable on return.

        Raises:
            AccessDenied: the space is not the owner's to give.
            InvalidRequest: malformed names or rights.
        """
        grants = self._named(principal, owner, to, resource, rights, group)
        now = time.time()

        def insert(db: apsw.Connection) -> None:
            db.executemany(
                "INSERT OR IGNORE INTO grants (principal, grantee, resource, right, granted_by, created_s)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(*grant, owner, now) for grant in grants],
            )
            failpoint("access.granted")

        def remember(_: None) -> None:
            self._grants |= frozenset(grants)

        await self._db.write(insert, committed=remember)

    async def revoke(
        self, principal: str, owner: str, to: str, resource: str, rights: Sequence[Right], *, group: str | None = None
    ) -> None:
        """Take rights back, on the space and on everything below it; holds from the return on.

        Raises:
            AccessDenied: the space is not the owner's.
            InvalidRequest: malformed names or rights, or the right comes from a grant on a wider space.
        """
        revoked = self._named(principal, owner, to, resource, rights, group)
        for right in dict.fromkeys(grant.right for grant in revoked):
            self._refuse_if_wider(principal, to, Resource.parse(resource), right)
        gone: list[_Grant] = []

        def delete(db: apsw.Connection) -> None:
            for grant in revoked:
                rows = db.execute(
                    "DELETE FROM grants WHERE principal = ? AND grantee = ? AND right = ?"
                    " AND (resource = ? OR substr(resource, 1, length(?)) = ?) RETURNING resource",
                    (principal, to, grant.right, resource, resource + "/", resource + "/"),
                )
                gone.extend(_Grant(principal, to, str(row[0]), grant.right) for row in rows)
            failpoint("access.revoked")

        def forget(_: None) -> None:
            self._grants -= frozenset(gone)

        await self._db.write(delete, committed=forget)

    async def close(self) -> None:
        """Finish open grants and close the database."""
        await asyncio.to_thread(self._db.close)

    def _named(
        self, principal: str, owner: str, to: str, resource: str, rights: Sequence[Right], group: str | None
    ) -> list[_Grant]:
        if len(split_name(to, "agent name")) != 1:
            raise InvalidRequest(f"{to!a} is no agent's name", fix="name one agent, without slashes")
        if not rights or not _RIGHTS.issuperset(rights):
            raise InvalidRequest(f"{list(rights)!a} are no rights", fix='name "read", "write" or both')
        space = Resource.parse(resource)
        if not space.owned_by(owner, "" if group is None else group):
            raise AccessDenied(
                f'agent "{owner}" does not own {resource}',
                agent=owner,
                fix=f'let {space.kind} "{space.name}" decide about it',
            )
        return [_Grant(principal, to, resource, right) for right in dict.fromkeys(rights)]

    def _refuse_if_wider(self, principal: str, to: str, space: Resource, right: str) -> None:
        for wider in space.within()[1:]:
            if _Grant(principal, to, wider, right) in self._grants:
                raise InvalidRequest(
                    f'agent "{to}" may {right} {space.text} by a grant on {wider}',
                    fix=f'revoke "{right}" on "{wider}" and grant the narrower spaces anew',
                )
