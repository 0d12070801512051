"""Scheduling policies: pure decisions over a read-only view, fed by events. No clock, no I/O, no locks.

Time is an argument, so the object that runs in the kernel is the object that runs in a simulator. A policy sees
*tasks* (one open LLM call of a program each) and answers with a `Plan`, which the engine loop carries out in the order
swap_out, swap_in, admit, run. A plan that does not fit the pool is cut by the loop, never half executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias, Union

from aios_kernel.syscalls import Priority


class Residency(Enum):
    """Where a task's context is."""

    QUEUED = "queued"
    """No context yet; only the prompt."""
    RESIDENT = "resident"
    """Its KV is in the pool."""
    SWAPPED = "swapped"
    """Snapshot in host memory."""


@dataclass(frozen=True, slots=True)
class Task:
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
    """Of these not computed yet; 1 for a decoding context; the whole prompt for a queued one."""
    generated: int


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may look at when it decides. `tasks` are in order of arrival."""

    tasks: Sequence[Task]
    kv_free: int
    kv_total: int
    block_size: int
    max_batch: int
    max_step_tokens: int
    can_swap: bool

    def kv_held(self, task: Task) -> int:
        """Tokens of KV, in whole blocks, that the task holds in the pool."""
        return self._blocks(task.length - task.pending) if task.residency is Residency.RESIDENT else 0

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
    """What to do in the next step, by task id; `run` pairs a task with the tokens to compute."""

    swap_out: list[int] = field(default_factory=list[int])
    swap_in: list[int] = field(default_factory=list[int])
    admit: list[int] = field(default_factory=list[int])
    run: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


@dataclass(frozen=True, slots=True)
class Arrived:
    """A task was queued."""

    task: int
    program: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A step computed `tokens` of a task, of which `generated` (0 or 1) were emitted."""

    task: int
    program: str
    tokens: int
    generated: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A task ended: answered, failed or cancelled."""

    task: int
    program: str


@dataclass(frozen=True, slots=True)
class ToolBegan:
    """A program paused on a tool."""

    program: str
    tool: str


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """A program's tool returned after `seconds`."""

    program: str
    tool: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ProgramEnded:
    """A program left; nothing of it will come again."""

    program: str


Event: TypeAlias = Union[Arrived, Computed, Finished, ToolBegan, ToolEnded, ProgramEnded]


class Policy(Protocol):
    """A scheduling policy; see the module's docstring. Built by a factory that takes the `[policy]` options."""

    name: str

    def observe(self, event: Event, now_s: float) -> None:
        """Take note of what happened."""
        ...

    def decide(self, view: View, now_s: float) -> Plan:
        """Choose the next step. Must make progress whenever some task could run."""
        ...


Options: TypeAlias = Mapping[str, float | int | str | bool]
"""A policy's options from the configuration."""
