"""Agents as programs: soonest through first, admission by working set, contexts kept over tool pauses.

docs/scheduling.md has the policy on one page, with what each of its mechanisms is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from aios_kernel.scheduler.program_decision import Decision
from aios_kernel.scheduler.program_kept import Kept
from aios_kernel.scheduler.program_knobs import Knobs
from aios_kernel.scheduler.program_lives import Lives
from aios_kernel.scheduler.program_pauses import Pauses
from aios_kernel.scheduler.program_queue import CLASSES, Rank, Waiting
from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Event,
    Finished,
    Options,
    Parked,
    Plan,
    ProgramEnded,
    Task,
    ToolBegan,
    ToolEnded,
    View,
)

_PATIENCE = {"interactive": 0.1, "normal": 1.0, "batch": 4.0}
"""Share of `patience` after which a class's calls are due."""
_DEFAULT_PAUSE_S = 30.0
_DUE_SHARE = 0.75
_PREFILL_PER_S = 10_000.0
_LEARNING = 0.1
_AGAIN = 16
"""Waiting calls whose ranks are found anew in one decision, when something was learned since."""


class ProgramPolicy:
    """The default policy.

    Attributes:
        knobs: its options.
        pauses: what is known of when programs come back.
        lives: what is known of how far programs go.
        waiting: calls without a context.
        kept: the contexts that are parked.
        longest: the most tokens that an answer has had.
    """

    name = "program"
    parks = True

    def __init__(self, options: Options) -> None:
        """Raises ConfigError for an option that is unknown or impossible."""
        self.knobs = Knobs.read(self.name, options)
        self.pauses = Pauses(_DEFAULT_PAUSE_S)
        self.lives = Lives()
        self.waiting = Waiting()
        self.kept = Kept(self.pauses, self.waiting)
        self.longest = 256
        self._prefill_per_s = _PREFILL_PER_S
        self._prefilled = 0
        self._counts_service = self.knobs.order == "service"
        self._decided_s = 0.0
        self._attained: dict[str, float] = {}
        self._joined: dict[str, float] = {}
        self._since_s: dict[str, float] = {}
        self._family: dict[str, str] = {}
        self._length: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._new: set[int] = set()

    def observe(self, event: Event, now_s: float) -> None:
        """Keep the account of service, pauses and queued calls."""
        if isinstance(event, Computed):
            prefilled = event.tokens - event.generated
            self._prefilled += prefilled
            if self._counts_service:
                self._serve(event, prefilled)
            return
        self.kept.touch(event.program)
        if isinstance(event, Arrived):
            self.pauses.call_arrived(event.program, now_s)
            if event.row is not None:
                self._line_up(event.row, now_s)
            else:
                self._new.add(event.task)
        elif isinstance(event, Finished):
            self._new.discard(event.task)
            self.waiting.remove(event.task)
            self.pauses.call_ended(event.program, now_s)
        elif isinstance(event, ToolBegan):
            self.pauses.tool_began(event.program, event.tool, event.expected_s, now_s)
        elif isinstance(event, ToolEnded):
            self.pauses.tool_ended(event.program, event.tool, event.seconds, now_s)
        else:
            self._leave(event, now_s)

    def decide(self, view: View, now_s: float) -> Plan:
        """Who comes in, who gives way, who computes."""
        self._meet(view, now_s)
        self._learn_speed(now_s)
        self.waiting.rank_again(_AGAIN, self.rank)
        return Decision(self, view, now_s).make()

    def rank(self, task: Task) -> Rank:
        """Smaller is admitted first: by class, then by when the program came, later by a multiple of what it needs.

        So nobody is overtaken by a program that comes later than that multiple of its own expected rest.
        """
        knobs, family = self.knobs, task.family
        if knobs.order == "service":
            return (CLASSES[task.priority], self._attained.get(family, 0.0), task.arrived_s)
        late_s = knobs.stretch * self.lives.rest_s(task.length) if knobs.order == "rest" else 0.0
        return (CLASSES[task.priority], self._joined.get(family, task.arrived_s) + late_s, task.arrived_s)

    def recompute_s(self, tokens: int) -> float:
        """Seconds that computing a context anew takes, at the speed seen lately."""
        return tokens / self._prefill_per_s

    def rest_s(self, parked: Parked, now_s: float) -> float:
        """Expected seconds until a parked context is needed."""
        return self.pauses.remaining(parked.program, now_s)

    def come_in(self, program: str, now_s: float) -> None:
        """A program joins those whose contexts are kept."""
        self._since_s.pop(program, None)  # in order of coming in
        self._since_s[program] = now_s

    def meet_parked(self, program: str, now_s: float) -> None:
        """A context was not known yet; if another policy let its program in, it is in from now on."""
        self._since_s.setdefault(program, now_s)

    def stop_waiting(self, number: int) -> None:
        """A call is in."""
        task = self.waiting.remove(number)
        if task is not None:
            self.kept.touch(task.program)

    def had_turns(self, now_s: float) -> Iterator[str]:
        """Programs that have been in for so long that one that is due may take their place, the longest first."""
        turn_s = self.knobs.patience * self.lives.stay_s
        return (name for name, _ in takewhile(lambda each: now_s - each[1] >= turn_s, self._since_s.items()))

    def _serve(self, event: Computed, prefilled: int) -> None:
        family = self._family.get(event.program, event.program)
        service = prefilled + self.knobs.decode_weight * event.generated
        self._attained[family] = self._attained.get(family, 0.0) + service

    def _learn_speed(self, now_s: float) -> None:
        """From the prefill of the step before this decision; small chunks say nothing."""
        elapsed, self._decided_s = now_s - self._decided_s, now_s
        if self._prefilled >= 256 and elapsed > 0:
            self._prefill_per_s += _LEARNING * (self._prefilled / elapsed - self._prefill_per_s)
        self._prefilled = 0

    def _meet(self, view: View, now_s: float) -> None:
        """Line up the calls that came since the last decision and were not shown; they are the last of the view."""
        for task in reversed(view.tasks) if self._new else ():
            if task.id in self._new:
                self._new.discard(task.id)
                self._line_up(task, now_s)
                self.kept.touch(task.program)
                if not self._new:
                    break
        self._new.clear()

    def _line_up(self, task: Task, now_s: float) -> None:
        """Rank a call that has come."""
        program, family, length = task.program, task.family, task.length
        self._family[program] = family
        self._joined.setdefault(family, now_s)
        self._length[program] = length
        self._first.setdefault(program, length)
        self.pauses.name_agent(program, task.agent)
        self.waiting.put(task, self.rank(task), self._due_s(task))

    def _due_s(self, task: Task) -> float:
        """When nobody may overtake a call any more: its patience is over, or most of the time to its deadline."""
        due = task.arrived_s + _PATIENCE[task.priority] * self.knobs.patience * self.lives.stay_s
        if task.deadline_s is None:
            return due
        return min(due, task.arrived_s + _DUE_SHARE * (task.deadline_s - task.arrived_s))

    def _leave(self, event: ProgramEnded, now_s: float) -> None:
        program = event.program
        self.pauses.program_ended(program)
        since_s = self._since_s.pop(program, None)
        family = self._family.pop(program, program)
        length, first = self._length.pop(program, 0), self._first.pop(program, 0)
        if family != program:
            return
        if since_s is not None:
            self.lives.ended(length, length - first, now_s - since_s)
            self.waiting.doubt()
        self._attained.pop(family, None)
        self._joined.pop(family, None)
