"""What the simulator keeps of programs and their open calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from aios_evals.schedule.workload import Call, Program
from aios_kernel.scheduler.protocol import Parked, Residency, Task


@dataclass(slots=True, eq=False)
class Run:
    """A program under way. Counts are in tokens."""

    program: Program
    root: str
    parent: Run | None
    started_s: float
    index: int = 0
    """Of the call that is open or comes next."""
    task: Open | None = None
    parked: Parked | None = None
    ready_s: float = 0.0
    """When what was moved to the pool for it has arrived."""
    next_s: float = 0.0
    """When its pause ends, children aside."""
    waits_for: int = 0
    """Pause and children that have not ended yet."""
    paused_s: float = 0.0
    """When its last call ended."""
    tool: str | None = None
    ended_s: float | None = None

    @property
    def name(self) -> str:
        """The program's."""
        return self.program.name

    @property
    def call(self) -> Call:
        """The one that is open or comes next."""
        return self.program.calls[self.index]


@dataclass(slots=True, eq=False)
class Open:
    """An open call."""

    id: int
    run: Run
    call: Call
    arrived_s: float
    length: int
    residency: Residency = Residency.QUEUED
    kv: int = 0
    """Tokens computed: in the pool, or in host memory when swapped."""
    generated: int = 0
    started: bool = False
    seen: Task | None = None
    """What the policy was last shown; None when it has changed since."""

    @property
    def pending(self) -> int:
        """Tokens of a resident or swapped context not computed yet."""
        return self.length - self.kv

    def show(self, held: int) -> Task:
        """As the policy sees it; `held` tokens are computed or would be found in the pool."""
        self.seen = Task(
            self.id,
            self.run.program.name,
            self.run.program.agent,
            "g",
            self.run.program.priority,
            self.arrived_s,
            self.residency,
            self.length,
            self.length - held,
            self.generated,
            self.run.root,
        )
        return self.seen


@dataclass(slots=True)
class Tally:
    """What happened. Counts are in tokens."""

    prefilled: int = 0
    prompted: int = 0
    necessary: int = 0
    swapped: int = 0
    busy_s: float = 0.0
    steps: int = 0
    decisions: int = 0
    ended: int = 0
    failed: int = 0
    now_s: float = 0.0
    completion_s: dict[str, float] = field(default_factory=dict[str, float])
    """Of each program that was started by itself: from its start to its last answer."""
    waited_s: list[float] = field(default_factory=list[float])
    """Of each call: from its arrival to its first step."""
    turned_s: list[float] = field(default_factory=list[float])
    """Of each call: from its arrival to its end."""
    timeline: list[tuple[float, int, int, int, int, int]] = field(
        default_factory=list[tuple[float, int, int, int, int, int]]
    )
    """Time, and tokens: of running calls, parked, cached in the pool; in host memory; number of queued calls."""
