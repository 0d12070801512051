"""The `access.*` syscalls: grants, the policy, decisions, and answers to calls that wait for a person."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from aios_kernel import errors, syscalls
from aios_kernel.access import Decision
from aios_kernel.access.manager import checked
from aios_kernel.calls import OpenCall
from aios_kernel.process import ProcessTable, Program
from aios_kernel.syscalls import AccessVerdict, GrantList, GrantRow, Ok, Result, Right

if TYPE_CHECKING:
    from aios_kernel.guard import Guard
    from aios_kernel.kernel import Handler


class PermissionService:
    """Answers what the policy says and takes answers of people. `others`: the principals beside the kernel's user."""

    def __init__(self, guard: Guard, table: ProcessTable, others: Collection[str]) -> None:
        self._guard = guard
        self._access = guard.access
        self._table = table
        self._others = others

    def routes(self) -> dict[type, Handler]:
        """The handlers by syscall."""
        return {
            syscalls.AccessGrant: self._grant,
            syscalls.AccessRevoke: self._revoke,
            syscalls.AccessGrants: self._list,
            syscalls.AccessPolicy: self._policy,
            syscalls.AccessCheck: self._check,
            syscalls.AccessPending: self._pending,
            syscalls.AccessApprove: self._approve,
        }

    async def _grant(self, open_call: OpenCall, call: syscalls.AccessGrant) -> Result:
        await self._access.give(open_call.program.chain(), call.to, call.resource, call.rights)
        return Ok()

    async def _revoke(self, open_call: OpenCall, call: syscalls.AccessRevoke) -> Result:
        await self._access.take_back(open_call.program.chain(), call.to, call.resource, call.rights)
        return Ok()

    def _list(self, open_call: OpenCall, call: syscalls.AccessGrants) -> GrantList:
        return GrantList(
            grants=[
                GrantRow(
                    to=grant.grantee,
                    resource=grant.resource,
                    right=cast(Right, grant.right),
                    granted_by=grant.granter[0].agent,
                    holds=self._access.is_held(grant),
                )
                for grant in self._access.grants.all(open_call.program.principal)
            ]
        )

    def _policy(self, open_call: OpenCall, call: syscalls.AccessPolicy) -> syscalls.PolicyText:
        if open_call.program.principal in self._others:
            raise errors.AccessDenied("the policy is the kernel's user's to read", fix="ask whoever runs the kernel")
        policy = self._access.reload() if call.reload else self._access.policy
        return syscalls.PolicyText(source=policy.text.source, text=policy.text.text)

    def _check(self, open_call: OpenCall, call: syscalls.AccessCheck) -> AccessVerdict:
        program = self._asked_about(open_call.program.principal, call)
        chain, tainted = program.chain(), call.tainted or bool(program.taint)
        decisions = [
            self._access.decide(chain, call.right, each, tainted=tainted)
            for each in checked(call.resource, call.right).exact()
        ]
        worst = max(decisions, key=lambda decision: ("allow", "ask", "deny").index(decision.effect))
        return _verdict(worst, self._access.policy.roles(chain[0]))

    def _asked_about(self, principal: str, call: syscalls.AccessCheck) -> Program:
        if call.program is not None:
            return self._table.find(call.program, principal)
        if not call.agent:
            raise errors.InvalidRequest("no agent is named", fix="name an agent or a program")
        return Program("", call.agent, principal, call.group or principal, call.framework)

    async def _pending(self, open_call: OpenCall, call: syscalls.AccessPending) -> Result:
        asked_by = self._guard.answerer(open_call.program)
        approvals = self._guard.approvals
        found = await approvals.wait(asked_by, call.after) if call.wait else approvals.pending(asked_by, call.after)
        return syscalls.Approvals(approvals=found)

    def _approve(self, open_call: OpenCall, call: syscalls.AccessApprove) -> Ok:
        asked_by = self._guard.answerer(open_call.program)
        self._guard.approvals.answer(call.id, asked_by, allow=call.allow, remember=call.remember)
        return Ok()


def _verdict(decision: Decision, roles: Collection[str]) -> AccessVerdict:
    return AccessVerdict(effect=decision.effect, rule=decision.rule, roles=sorted(roles))
