"""What a plugin or the tools file hands over to have a tool hosted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec

from aios_kernel.syscalls import ToolSpec
from aios_kernel.tools.confinement import UNSHARED, Confinement

Isolation: TypeAlias = Literal["trusted", "subprocess", "sandbox", "container"]
"""How far a tool is kept from the kernel. `trusted`: in its process, on a thread."""

Effects: TypeAlias = Literal["idempotent", "once", "keyed", "queryable"]
"""What a second run of the same call would do, and so what may be done about a call whose end is not known.

`idempotent`: nothing more than the first; it is run again. `once`: perhaps everything twice; it is never run again.
`keyed`: nothing more, if it carries the idempotency key of the first; it is run again with that. `queryable`: perhaps
everything twice, but the tool can be asked whether the call of a key was done.
"""


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a call that failed is tried, and when: after `wait_s`, then `backoff` times as long, and so on.

    Only failures after which the effect rule allows another run are tried again: all of `idempotent` and `keyed` tools,
    those of `queryable` ones that say that nothing was done, and `ToolNotStarted`, whatever the rule.
    """

    attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    wait_s: Annotated[float, msgspec.Meta(ge=0)] = 0.5
    backoff: Annotated[float, msgspec.Meta(ge=1)] = 2.0


ONCE = Retry()
"""One attempt."""


class EffectStatus(NamedTuple):
    """What a queryable tool says of an earlier call: its result if it was done, or that it is not known."""

    state: Literal["done", "not_done", "unknown"]
    result: object = None


class Launch(msgspec.Struct, frozen=True):
    """A process that runs one call: what it prints is the result, a status other than 0 a failure.

    Attributes:
        argv: program and arguments; no shell reads them.
        env: the whole environment of the process.
        cwd: where it runs; empty: a new empty folder.
        stdin: what it reads.
    """

    argv: list[str]
    env: dict[str, str] = {}
    cwd: str = ""
    stdin: str = ""


@dataclass(frozen=True, slots=True)
class HostedTool:
    """A tool in the kernel. Plugins of the entry-point group `aios_kernel` return a list of them.

    Attributes:
        spec: name, description and JSON schema of the arguments, as the model sees them.
        run: called with the checked arguments as keywords, on a thread; may be a coroutine function, which is cancelled
            when the call's time is over or its caller has gone. Text is returned as it is, anything else as JSON. Tools
            whose effects are `keyed` or `queryable` get the keyword `idempotency_key` as well.
        isolation: what the tool needs; a level that this kernel does not offer is refused, never lowered.
        timeout_s: seconds a call may take, in all its attempts; None means the kernel's default.
        expected_s: seconds a call usually takes, for the scheduler; None: it learns them.
        max_running: calls of this tool at a time; more of them wait. None: only the kernel's limit.
        exclusive: a group of tools of which one call runs at a time, such as those that drive one machine.
        retry: what is done about a failure.
        effects: what a second run would do. A tool that does not say is never run twice.
        status: of a queryable tool: takes the idempotency key of an earlier call, on a thread; may be a coroutine
            function.
        untrusted: what it returns may have been written by a stranger, and taints the program that reads it.
        confined: `run` keeps the isolation level by itself; otherwise the kernel confines it.
        confinement: what it may use at its isolation level.
        launch: gives the process that runs a call, within the isolation level, so that the tool can be submitted as a
            long job. Gets the checked arguments, and the idempotency key among them where `run` does.
    """

    spec: ToolSpec
    run: Callable[..., object | Awaitable[object]]
    isolation: Isolation = "trusted"
    timeout_s: float | None = None
    expected_s: float | None = None
    max_running: int | None = None
    exclusive: str | None = None
    retry: Retry = ONCE
    effects: Effects = "once"
    status: Callable[[str], EffectStatus | Awaitable[EffectStatus]] | None = None
    untrusted: bool = False
    confined: bool = False
    confinement: Confinement = UNSHARED
    launch: Callable[[Mapping[str, Any]], Launch] | None = None


Confine: TypeAlias = Callable[[HostedTool], HostedTool]
"""Gives a tool whose `run` keeps an isolation level (and says so: `confined`), and whose `launch` does, too; one that
is left as it was is dropped. Raises Unsupported if it cannot."""
