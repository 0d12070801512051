"""Scheduling policies: pure decisions over a read-only view, fed by events. No clock, no I/O, no locks.

Time is an argument, so the object that runs in the kernel is the object that runs in a simulator. A policy sees
*tasks* (one open LLM call of a program each) and, if it asks for them, *parked* contexts (what the last call of a
program left in the pool), and answers with a `Plan`, which the engine loop carries out in the order drop, swap_out,
stow, fetch, swap_in, admit, run. A plan that does not fit the pool is cut by the loop, never half executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias, Union

import msgspec

from aios_kernel.errors import AiosError
from aios_kernel.syscalls import Priority


class Residency(Enum):
    """Where a task's context is."""

    QUEUED = "queued"
    """No context yet; only the prompt."""
    RESIDENT = "resident"
    """Its KV is in the pool."""
    SWAPPED = "swapped"
    """Snapshot in host memory."""


class Task(msgspec.Struct, frozen=True):
    """One open LLM call. Counts are in tokens."""

    id: int
    program: str
    agent: str
    group: str
    priority: Priority
    arrived_s: float
    residency: Residency
    length: int
    """Tokens of the sequence so far, prompt and answer."""
    pending: int
    """Of these not computed yet; 1 for a decoding context; for a queued one the prompt, less what its program's parked
    context holds of it in the pool."""
    generated: int
    root: str = ""
    """The program at the top of its family: forks and sub-agents are scheduled as one with it. Empty: itself."""
    deadline_s: float | None = None
    """When its caller gives up, on the clock of `now_s`."""

    @property
    def family(self) -> str:
        """The program that attained service is counted for."""
        return self.root or self.program


class Parked(msgspec.Struct, frozen=True):
    """The KV that a program's last call left behind, kept for its next one. Counts are in tokens."""

    program: str
    group: str
    priority: Priority
    residency: Residency
    """RESIDENT or SWAPPED."""
    length: int
    """Tokens with KV."""
    since_s: float
    """When the call ended."""
    root: str = ""

    @property
    def family(self) -> str:
        """See `Task.family`."""
        return self.root or self.program


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may look at when it decides. `tasks` are in order of arrival, `parked` in order of parking.

    Tasks and parked contexts may be read from what goes on changing: copy what is to be kept beyond the decision.
    """

    tasks: Sequence[Task]
    kv_free: int
    kv_total: int
    block_size: int
    max_batch: int
    max_step_tokens: int
    can_swap: bool
    parked: Sequence[Parked] = ()
    """One a program at most; empty unless the policy has `parks`."""
    host_free: int = 0
    """Tokens of KV that the swap space can still take."""
    placed: Sequence[Task] | None = None
    """Those of the tasks that are not queued; None: not sorted out (`active` finds them)."""
    index: Mapping[int, Task] | None = None
    """The tasks by id; None: not made (`by_id` makes it)."""

    def active(self) -> Sequence[Task]:
        """Tasks with KV, in the pool or swapped out, in order of arrival."""
        if self.placed is not None:
            return self.placed
        return [task for task in self.tasks if task.residency is not Residency.QUEUED]

    def by_id(self) -> Mapping[int, Task]:
        """The tasks by id."""
        return self.index if self.index is not None else {task.id: task for task in self.tasks}

    def kv_held(self, task: Task) -> int:
        """Tokens of KV, in whole blocks, that the task holds in the pool, or would share with what is parked there."""
        return self._blocks(task.length - task.pending) if task.residency is not Residency.SWAPPED else 0

    def kv_need(self, task: Task, n_tokens: int) -> int:
        """Tokens of KV, in whole blocks, that computing `n_tokens` more of this task takes from the pool."""
        return self._blocks(task.length - task.pending + n_tokens) - self.kv_held(task)

    def kv_fits(self, task: Task, free: int) -> int:
        """How many more tokens of a resident task can be computed with `free` tokens of KV."""
        computed = task.length - task.pending
        return self.kv_held(task) + free // self.block_size * self.block_size - computed

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size) * self.block_size


@dataclass(slots=True)
class Plan:
    """What to do in the next step, by task id; `run` pairs a task with the tokens to compute.

    The last three are about parked contexts, by program: `stow` swaps one out to host memory, `fetch` brings it back,
    `drop` gives it up (its blocks stay in the prefix cache until somebody needs their room). Admitting a task uses its
    program's parked context up.
    """

    swap_out: list[int] = field(default_factory=list[int])
    swap_in: list[int] = field(default_factory=list[int])
    admit: list[int] = field(default_factory=list[int])
    run: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    stow: list[str] = field(default_factory=list[str])
    fetch: list[str] = field(default_factory=list[str])
    drop: list[str] = field(default_factory=list[str])
    refuse: list[tuple[int, AiosError]] = field(default_factory=list[tuple[int, AiosError]])
    """Tasks to end with an error, before anything else is done."""
    waits: dict[int, str] = field(default_factory=dict[int, str])
    """What tasks wait for if not for room, in words, for whoever looks at them."""
    patient: bool = False
    """That nothing runs is meant so: a task waits for the time to pass (a rate)."""
    repeat: int = 0
    """Of a plan whose tasks all decode: for how many steps more it holds, unless something happens meanwhile (an event,
    an end, a pool that gets short of blocks). For so long the policy is not asked; then it is told of all of them."""


class Arrived(msgspec.Struct, frozen=True):
    """A task was queued."""

    task: int
    program: str
    row: Task | None = None
    """As the next view will show it, where it is at hand: thousands may come between two decisions, and what is done
    about each of them here does not hold up a step."""


class Computed(msgspec.Struct, frozen=True):
    """A step computed `tokens` of a task, of which `generated` (0 or 1) were emitted; or several (`Plan.repeat`)."""

    task: int
    program: str
    tokens: int
    generated: int


class Finished(msgspec.Struct, frozen=True):
    """A task ended: answered, failed or cancelled."""

    task: int
    program: str


class ToolBegan(msgspec.Struct, frozen=True):
    """A program paused on a tool."""

    program: str
    tool: str
    expected_s: float | None = None
    """What the tool's declaration says; None: nothing."""


class ToolEnded(msgspec.Struct, frozen=True):
    """A program's tool returned after `seconds`; None: it goes on without being waited for, and tells nothing."""

    program: str
    tool: str
    seconds: float | None


class ProgramEnded(msgspec.Struct, frozen=True):
    """A program left; nothing of it will come again."""

    program: str


Event: TypeAlias = Union[Arrived, Computed, Finished, ToolBegan, ToolEnded, ProgramEnded]


class Policy(Protocol):
    """A scheduling policy; see the module's docstring. Built by a factory that takes the `[policy]` options.

    Attributes:
        name: as in the configuration.
        parks: whether contexts of ended calls are parked for it to decide on. Otherwise, and for a policy without
            the attribute, the prefix cache keeps what it has room for.
    """

    name: str
    parks: bool

    def observe(self, event: Event, now_s: float) -> None:
        """Take note of what happened."""
        ...

    def decide(self, view: View, now_s: float) -> Plan:
        """Choose the next step. Must make progress whenever some task could run."""
        ...


Options: TypeAlias = Mapping[str, float | int | str | bool]
"""A policy's options from the configuration."""
