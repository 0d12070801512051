"""Leave to run tools in the agents' own processes, each in its place and until its time limit."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from aios_kernel._names import check_text, shown
from aios_kernel.errors import AccessDenied, AiosError, InvalidRequest, NotFound, ToolTimeout
from aios_kernel.syscalls import ToolBegin, ToolEnd, ToolGrant, ToolSpec
from aios_kernel.tools.arguments import ArgumentChecker, decode_arguments
from aios_kernel.tools.file import LocalEntry
from aios_kernel.tools.history import History, Latency
from aios_kernel.tools.registry import check_timeout
from aios_kernel.tools.slots import Demand, Slots

_Ending: TypeAlias = Literal["ended", "expired"]

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Open:
    """A grant in use; times as the caller's clock gives them, in seconds."""

    program: str
    name: str
    began_s: float
    limit_s: float
    demand: Demand


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A checked `tool.begin`: the place that it needs and the seconds that it may take, the wait for it included."""

    name: str
    demand: Demand
    limit_s: float
    expected_s: float | None


@dataclass(frozen=True, slots=True)
class Expired:
    """A grant that ran out. `error` is what its program's open calls deserve."""

    grant: str
    program: str
    name: str
    began_s: float
    error: ToolTimeout


@final
class ToolGrants:
    """Who runs which tool, since when; in memory, driven by the clock that is passed in.

    A grant holds its place until it ends, exactly once: by `end`, by `expired`, or by `drop`.

    Args:
        default_timeout_s: seconds for calls that name no limit.
        grace_s: seconds past its limit after which a grant expires, for a report that is under way.
        slots: the places of tools that declare limits.
        rules: what the tools file says of tools in the agents' processes, by name.

    Raises:
        InvalidSchema: the parameters in a rule are no JSON schema.
    """

    def __init__(
        self,
        default_timeout_s: float = 300.0,
        *,
        grace_s: float = 1.0,
        slots: Slots | None = None,
        rules: Mapping[str, LocalEntry] | None = None,
    ) -> None:
        self._default_timeout_s = default_timeout_s
        self._grace_s = grace_s
        self._open: dict[str, _Open] = {}
        self._past: OrderedDict[tuple[str, str], _Ending] = OrderedDict()
        self._history = History()
        self.slots = slots or Slots()
        self._rules = dict(rules or {})
        self.has_untrusted = any(rule.untrusted for rule in self._rules.values())
        self._checkers = {
            name: ArgumentChecker(ToolSpec(name=name, parameters=rule.parameters))
            for name, rule in self._rules.items()
            if rule.parameters
        }

    def rule(self, name: str) -> LocalEntry | None:
        """What the tools file says of a tool."""
        return self._rules.get(name)

    def checked(self, principal: str, call: ToolBegin, *, allowed: Collection[str] | None = None) -> ToolRequest:
        """Hold a call to its rules.

        Args:
            principal: whose call it is.
            call: the tool, its arguments and its limits.
            allowed: names of the tools that the agent may use; None means all.

        Raises:
            AccessDenied: the tool is not among the allowed.
            InvalidRequest: no name, arguments that are no JSON object or against the schema, or a limit that is none.
        """
        if not call.name:
            raise InvalidRequest("the tool has no name", fix="name the tool")
        check_text(call.name, "tool name")
        check_allowed(call.name, allowed)
        arguments = decode_arguments(call.name, call.arguments)
        if call.name in self._checkers:
            self._checkers[call.name].check(arguments)
        rule = self._rules.get(call.name, _NO_RULE)
        limit_s = check_timeout(call.timeout_s, rule.timeout_s or self._default_timeout_s)
        limit_s = min(limit_s, rule.timeout_s or limit_s)  # an agent may ask for less than the tools file allows
        return ToolRequest(call.name, _demand(principal, call, rule), limit_s, call.expected_s or rule.expected_s)

    def begin(
        self, program: str, request: ToolRequest, now: float, *, left_s: float | None = None, run_s: float | None = None
    ) -> ToolGrant:
        """Grant a program the run of a tool in a place that was taken for it.

        Args:
            program: the program's id.
            request: the checked call.
            now: seconds on the caller's clock.
            left_s: seconds that are left of its limit; None: all.
            run_s: the run's deadline in seconds, if that is what limits the call.
        """
        limit_s = request.limit_s if left_s is None else left_s
        grant = secrets.token_urlsafe(16)
        self._open[grant] = _Open(program, request.name, now, limit_s, request.demand)
        return ToolGrant(grant=grant, timeout_s=limit_s, run_s=run_s)

    def end(self, program: str, call: ToolEnd, now: float) -> float:
        """Take a report that a tool has ended; gives the seconds it ran.

        Raises:
            NotFound: no grant of this program has that id.
            InvalidRequest: it was reported before.
            ToolTimeout: it ran out before.
        """
        grant = self._open.get(call.grant)
        if grant is None or grant.program != program:
            raise self._refusal(program, call.grant)
        del self._open[call.grant]
        self.slots.give(grant.demand)
        seconds = max(0.0, now - grant.began_s)
        self._history.add(grant.name, seconds)
        self._remember(program, call.grant, "ended")
        return seconds

    def expired(self, now: float) -> list[Expired]:
        """End the grants that are past limit and grace; each is given once."""
        late = [(id, grant) for id, grant in self._open.items() if now > grant.began_s + grant.limit_s + self._grace_s]
        for id, grant in late:
            del self._open[id]
            self.slots.give(grant.demand)
            self._history.add(grant.name, now - grant.began_s)
            self._remember(grant.program, id, "expired")
        return [
            Expired(id, grant.program, grant.name, grant.began_s, _timeout(grant.name, grant.limit_s))
            for id, grant in late
        ]

    def drop(self, program: str) -> None:
        """End the grants of a program that has left."""
        for id in [id for id, grant in self._open.items() if grant.program == program]:
            self.slots.give(self._open.pop(id).demand)

    def latency(self, tool: str) -> Latency | None:
        """How long a tool took before, if it was ever used."""
        return self._history.of(tool)

    def _remember(self, program: str, grant: str, ending: _Ending) -> None:
        self._past[program, grant] = ending
        if len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)

    def _refusal(self, program: str, grant: str) -> AiosError:
        """Why a grant cannot be ended; another program's is as unknown as none."""
        ending = self._past.get((program, grant))
        if ending == "ended":
            return InvalidRequest("the end of that tool call was reported before", fix="report each grant once")
        if ending == "expired":
            return ToolTimeout(
                "the tool call had run out of time before its end was reported", fix="ask for a longer timeout_s"
            )
        return NotFound("this program holds no such grant", fix="call tool.begin first and pass on its grant")


_NO_RULE = LocalEntry()


def _demand(principal: str, call: ToolBegin, rule: LocalEntry) -> Demand:
    """The place of a call: limits of the tools file are the kernel's, those that a call brings its principal's."""
    if call.max_running is not None and call.max_running < 1:
        raise InvalidRequest(f"max_running is {call.max_running}", fix="give a number from 1 on, or leave it out")
    exclusive = rule.exclusive or call.exclusive
    if rule.max_running is not None:
        return Demand(f"local {call.name}", rule.max_running, exclusive)
    return Demand(f"local {principal} {call.name}", call.max_running, exclusive)


def check_allowed(name: str, allowed: Collection[str] | None) -> None:
    """Raise AccessDenied for a tool that is not among the allowed; None allows all."""
    if allowed is not None and name not in allowed:
        raise AccessDenied(f"the agent may not use tool {shown(name)}", fix="add it to tools= of the agent's decorator")


def _timeout(name: str, limit_s: float) -> ToolTimeout:
    return ToolTimeout(f"tool {shown(name)} did not end within {limit_s:g} s", fix="raise timeout_s or mend the tool")
