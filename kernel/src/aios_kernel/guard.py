"""What every syscall passes before it runs: may this run do this? If a person has to say so, the call waits.

One table says which right each syscall needs, on which resource; a syscall that is not in it cannot be called.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aios_kernel import errors, syscalls
from aios_kernel._names import split_name
from aios_kernel.access import AuditEntry, Decision, Question, Resource, denied
from aios_kernel.access.approvals import Answer, Answerer, Approvals, Asker, arguments_of
from aios_kernel.calls import OpenCall
from aios_kernel.notes import ALL
from aios_kernel.process import ProcessTable, Program
from aios_kernel.scheduler.protocol import Event, ToolBegan, ToolEnded
from aios_kernel.spaces import space_of
from aios_kernel.syscalls import Approval, Right

if TYPE_CHECKING:
    from aios_kernel.managers import Managers

APPROVAL = "approval"
"""What the scheduler calls the tool that a program waits for when it waits for a person."""
_FREE: tuple[type, ...] = (
    syscalls.ToolEnd, syscalls.ToolList, syscalls.ToolWait, syscalls.ToolCancel, syscalls.ToolJobs,
    syscalls.ToolServers, syscalls.ToolPins, syscalls.ToolReview, syscalls.ToolApprove, syscalls.MemorySpaces,
    syscalls.MemoryReindex, syscalls.MemoryRecord, syscalls.MemoryRecall, syscalls.MemoryKeep, syscalls.AgentSpawn,
    syscalls.AgentExit, syscalls.AgentReceive, syscalls.AgentWait, syscalls.AgentPriority, syscalls.AccessGrant,
    syscalls.AccessRevoke, syscalls.AccessGrants, syscalls.AccessPolicy, syscalls.AccessCheck, syscalls.AccessPending,
    syscalls.AccessApprove, syscalls.AccessAudit, syscalls.AccessVerify, syscalls.KernelInfo, syscalls.KernelPs,
    syscalls.KernelKill, syscalls.KernelTrace, syscalls.KernelPolicy, syscalls.KernelShutdown,
)  # fmt: skip
"""Syscalls that need no right: about what is the caller's own, or checked by who serves them (spawn, grants)."""


_RULING: tuple[type, ...] = (
    syscalls.AccessGrant, syscalls.AccessRevoke, syscalls.AccessApprove, syscalls.AccessPolicy, syscalls.KernelKill,
    syscalls.KernelPolicy, syscalls.KernelShutdown, syscalls.ToolApprove,
)  # fmt: skip
"""What decides over others: not for runs that untrusted content has reached, whatever the policy says."""
_HOUSE: tuple[type, ...] = (syscalls.KernelPolicy, syscalls.KernelShutdown)
"""What is the same for all principals: the kernel's own user decides."""


class Wanted(NamedTuple):
    """What a call wants to do."""

    right: Right
    resource: str


_Reads: TypeAlias = Callable[[Program, Any], Wanted | None]


class Guard:
    """Decides about every call, has people asked, and follows what untrusted tools have said.

    Args:
        managers: access, its record, and the tools.
        table: the programs.
        observe: tells the scheduler who waits.
        model_of: the name that really serves a model name.
        others: the principals beside the kernel's own user.
    """

    def __init__(
        self,
        managers: Managers,
        table: ProcessTable,
        observe: Callable[[Event], None],
        model_of: Callable[[syscalls.LlmChat | syscalls.LlmEmbed], str],
        others: Collection[str] = (),
    ) -> None:
        self.access = managers.access
        self.approvals = Approvals(lambda: self.access.policy.approvals, self._heard)
        self._audit = managers.audit
        self._tools = managers.tools
        self._grants = managers.grants
        self._table = table
        self._observe = observe
        self._model_of = model_of
        self._others = others
        self._wanted = self._table_of_rights()

    def decide(self, open_call: OpenCall) -> Question | None:
        """Return if the call may run; a question if a person has to be asked first. Raises AccessDenied."""
        program = open_call.program
        if isinstance(open_call.call, syscalls.LlmChat):
            self._read(program, open_call.call)
        self._check_rule(program, open_call.call)
        wanted = self._wanted[type(open_call.call)](program, open_call.call)
        if wanted is None:
            return None
        chain = program.chain()
        decision = self.access.decide(chain, wanted.right, wanted.resource, tainted=bool(program.taint))
        if decision.effect == "allow":
            return None
        if decision.question is None:
            raise denied(chain, wanted.right, _plain(wanted.resource), decision)
        remembered = program.answers.get((decision.question.rule, wanted.right, wanted.resource))
        if remembered is None:
            return decision.question
        if not remembered:
            raise _refused(program, wanted, decision, "it was denied for the whole run")
        return None

    def _check_rule(self, program: Program, call: Any) -> None:
        """Return if the run may rule, should the call be of that kind. Raises AccessDenied."""
        name = syscalls.name_of(call)
        if isinstance(call, _RULING) and program.taint:
            raise errors.AccessDenied(
                f"{name} is not for a run that untrusted content has reached ({', '.join(program.taint)})",
                fix="do it from a terminal, or from a run of its own",
            )
        if isinstance(call, _HOUSE) and program.principal in self._others:
            raise errors.AccessDenied(f"{name} is the kernel's user's", fix="ask whoever runs the kernel")

    async def ask(self, open_call: OpenCall, question: Question) -> None:
        """Park the program until a person has answered. Raises AccessDenied if the answer is no."""
        program = open_call.program
        wanted = self._wanted[type(open_call.call)](program, open_call.call)
        assert wanted is not None
        asker = Asker(
            program.chain()[0], program.id, program.session, tuple(program.taint), frozenset(self._around(program))
        )
        waiting = f"leave to {wanted.right} {_plain(wanted.resource)} (aios approvals)"
        program.waits.append(waiting)
        self._observe(ToolBegan(program.id, APPROVAL))
        began = time.monotonic()
        try:
            answer = await self.approvals.ask(asker, *wanted, arguments_of(open_call.call), question)
        finally:
            program.waits.remove(waiting)
            waited = time.monotonic() - began
            program.account.message_s += waited
            if program.finished_s is None:
                self._observe(ToolEnded(program.id, APPROVAL, waited))
        if answer.remember:
            program.answers[(question.rule, wanted.right, wanted.resource)] = answer.allow
        if not answer.allow:
            raise _refused(program, wanted, Decision("ask", question.rule, question), f"{answer.by} said no")

    def heard(self, event: Event) -> None:
        """Follow a tool's end on its way to the scheduler: whoever called an untrusted one is tainted from here on."""
        if isinstance(event, ToolEnded):
            program = self._table.known(event.program)
            if program is not None:
                self.told(program, event.tool)
        self._observe(event)

    def told(self, program: Program, tool: str) -> None:
        """A program is given what a tool said, maybe to another run, and long ago."""
        if self._is_untrusted(tool):
            program.mark([f"tool/{tool}"])

    def answerer(self, program: Program) -> Answerer:
        """A program that looks at what waits, or answers."""
        return Answerer(program.principal, program.id, program.session)

    def _read(self, program: Program, chat: syscalls.LlmChat) -> None:
        """Results of untrusted tools that stand in a conversation taint too: of other runs, or by HTTP.

        A result whose tool cannot be told (no name, an unknown call, a name that is none) may be anybody's.
        """
        if program.taint or not self._follows_taint:
            return
        called = {call.id: call.name for message in chat.messages for call in message.tool_calls}
        told = [message for message in chat.messages if message.role == "tool"]
        pairs = dict.fromkeys((message.name or "", called.get(message.tool_call_id or "", "")) for message in told)
        for name in dict.fromkeys(name for pair in pairs for name in set(pair) - {""} or {""}):  # each is judged once
            if not _is_name(name) or self._is_untrusted(name):
                program.mark([f"tool/{name or '?'}"])

    @property
    def _follows_taint(self) -> bool:
        """Whether there is anything here that taints."""
        return self.access.policy.follows_taint or self._tools.has_untrusted or self._grants.has_untrusted

    def _is_untrusted(self, tool: str) -> bool:
        # The kernel's MCP front spells a tool with underscores that has slashes here.
        return any(self._says_untrusted(name) for name in dict.fromkeys((tool, tool.replace("__", "/"))))

    def _says_untrusted(self, tool: str) -> bool:
        hosted, rule = self._tools.tool(tool), self._grants.rule(tool)
        return (
            self.access.policy.taints(tool)
            or (hosted is not None and hosted.untrusted)
            or (rule is not None and rule.untrusted)
        )

    def _around(self, program: Program) -> set[str]:
        found = {member.id for member in self._table.family(program)}
        above = program.above
        while above is not None:
            found.add(above.id)
            above = above.above
        return found

    def _heard(self, approval: Approval, answer: Answer, waited_s: float) -> None:
        """Write an answer into the audit log."""
        outcome = f"{'approved' if answer.allow else 'denied'} by {answer.by}" + (
            " for the whole run" if answer.remember else ""
        )
        self._audit.append(
            AuditEntry(
                time.time(),
                approval.principal,
                approval.agent,
                approval.program,
                "access.approval",
                f"{approval.right} {approval.resource}",
                outcome,
                waited_s,
                0.0,
            )
        )

    # --- which right each syscall needs -----------------------------------------------------------------------------

    def _table_of_rights(self) -> Mapping[type, _Reads]:
        def space(right: Right, store: str, field: str) -> _Reads:
            def read(program: Program, call: Any) -> Wanted | None:
                named = getattr(call, field)
                # Of all spaces those are looked through that the caller may use unasked: the service leaves out others.
                if named == ALL:
                    return None
                return Wanted(right, Resource.parse(f"{store}/{space_of(program, named)}").text)

            return read

        memory = {
            "read": (syscalls.MemorySearch, syscalls.MemoryGet),
            "write": (syscalls.MemoryAdd, syscalls.MemoryUpdate, syscalls.MemoryDelete, syscalls.MemoryRollback),
        }
        storage = {
            "read": (syscalls.StorageGet, syscalls.StorageList, syscalls.StorageVersions),
            "write": (syscalls.StoragePut, syscalls.StorageRollback, syscalls.StorageDelete),
        }
        rights: tuple[Right, Right] = ("read", "write")
        return {
            **dict.fromkeys(_FREE, _nothing),
            **{call: space(right, "memory", "namespace") for right in rights for call in memory[right]},
            **{call: space(right, "storage", "owner") for right in rights for call in storage[right]},
            syscalls.LlmChat: lambda _, call: Wanted("use", f"model/{self._model_of(call)}"),
            syscalls.LlmEmbed: lambda _, call: Wanted("use", f"model/{self._model_of(call)}"),
            syscalls.ToolBegin: _tool,
            syscalls.ToolInvoke: _tool,
            syscalls.ToolSubmit: _tool,
            syscalls.AgentSend: self._message,
        }

    def _message(self, program: Program, call: syscalls.AgentSend) -> Wanted:
        target = self._table.known(call.to)
        known = target is not None and target.principal == program.principal
        return Wanted("send", f"message/{target.agent if known and target is not None else call.to}")


def _tool(_: Program, call: syscalls.ToolBegin | syscalls.ToolInvoke | syscalls.ToolSubmit) -> Wanted:
    # A rule on `tool/mail` covers what is below it: no name may climb out of there, in whatever process looks it up.
    return Wanted("call", f"tool/{'/'.join(split_name(call.name, 'tool name'))}" if call.name else "tool/")


def _is_name(name: str) -> bool:
    """Whether this is how a tool is called, so that rules about the tool are rules about this."""
    try:
        return name == name.strip() and bool(split_name(name, "tool name"))
    except errors.InvalidRequest:
        return False


def _nothing(_: Program, call: Any) -> None:
    return None


def _plain(resource: str) -> str:
    """A resource as grants and people name it: a space without the half that was asked for."""
    return resource.removeprefix("memory/").removeprefix("storage/")


def _refused(program: Program, wanted: Wanted, decision: Decision, why: str) -> errors.AccessDenied:
    return errors.AccessDenied(
        f'agent "{program.agent}" may not {wanted.right} {_plain(wanted.resource)}: {why} ({decision.rule})',
        agent=program.agent,
        fix="ask again with other arguments, or have it answered: aios approvals --watch",
    )
