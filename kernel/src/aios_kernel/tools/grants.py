"""Leave to run tools in the agents' own processes, each until its time limit."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from aios_kernel._names import check_text, shown
from aios_kernel.errors import AccessDenied, AiosError, InvalidRequest, NotFound, ToolTimeout
from aios_kernel.syscalls import ToolBegin, ToolEnd, ToolGrant
from aios_kernel.tools.arguments import decode_arguments
from aios_kernel.tools.history import History, Latency
from aios_kernel.tools.registry import check_timeout

_Ending: TypeAlias = Literal["ended", "expired"]

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class _Open:
    """A grant in use; times as the caller's clock gives them, in seconds."""

    program: str
    name: str
    began_s: float
    limit_s: float


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

    A grant ends exactly once: by `end`, by `expired`, or by `drop`.

    Args:
        default_timeout_s: seconds for calls that name no limit.
        grace_s: seconds past its limit after which a grant expires, for a report that is under way.
    """

    def __init__(self, default_timeout_s: float = 300.0, *, grace_s: float = 1.0) -> None:
        self._default_timeout_s = default_timeout_s
        self._grace_s = grace_s
        self._open: dict[str, _Open] = {}
        self._past: OrderedDict[tuple[str, str], _Ending] = OrderedDict()
        self._history = History()

    def begin(self, program: str, call: ToolBegin, now: float, *, allowed: Collection[str] | None = None) -> ToolGrant:
        """Grant a program the run of a tool.

        Args:
            program: the program's id.
            call: the tool, its arguments and its limit.
            now: seconds on the caller's clock.
            allowed: names of the tools that the agent may use; None means all.

        Raises:
            AccessDenied: the tool is not among the allowed.
            InvalidRequest: no name, arguments that are no JSON object, or a limit that is no positive number.
        """
        if not call.name:
            raise InvalidRequest("the tool has no name", fix="name the tool")
        check_text(call.name, "tool name")
        check_allowed(call.name, allowed)
        decode_arguments(call.name, call.arguments)
        limit_s = check_timeout(call.timeout_s, self._default_timeout_s)
        grant = secrets.token_urlsafe(16)
        self._open[grant] = _Open(program, call.name, now, limit_s)
        return ToolGrant(grant=grant, timeout_s=limit_s)

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
        seconds = max(0.0, now - grant.began_s)
        self._history.add(grant.name, seconds)
        self._remember(program, call.grant, "ended")
        return seconds

    def expired(self, now: float) -> list[Expired]:
        """End the grants that are past limit and grace; each is given once."""
        late = [(id, grant) for id, grant in self._open.items() if now > grant.began_s + grant.limit_s + self._grace_s]
        for id, grant in late:
            del self._open[id]
            self._history.add(grant.name, now - grant.began_s)
            self._remember(grant.program, id, "expired")
        return [
            Expired(id, grant.program, grant.name, grant.began_s, _timeout(grant.name, grant.limit_s))
            for id, grant in late
        ]

    def drop(self, program: str) -> None:
        """End the grants of a program that has left."""
        self._open = {id: grant for id, grant in self._open.items() if grant.program != program}

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


def check_allowed(name: str, allowed: Collection[str] | None) -> None:
    """Raise AccessDenied for a tool that is not among the allowed; None allows all."""
    if allowed is not None and name not in allowed:
        raise AccessDenied(f"the agent may not use tool {shown(name)}", fix="add it to tools= of the agent's decorator")


def _timeout(name: str, limit_s: float) -> ToolTimeout:
    return ToolTimeout(f"tool {shown(name)} did not end within {limit_s:g} s", fix="raise timeout_s or mend the tool")
