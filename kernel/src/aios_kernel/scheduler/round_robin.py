"""Round robin with time slices counted in generated tokens.

Options: `quantum` (tokens a slice, default 32), `slots` (calls that run at once, default as many as the engine takes)
and `always_swap` (snapshot a context at the end of its slice even if memory is not short; to test snapshots).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice

from aios_kernel.scheduler.options import check_known, switch, whole_number
from aios_kernel.scheduler.packing import Packer, anyone
from aios_kernel.scheduler.protocol import Arrived, Computed, Event, Finished, Options, Plan, Residency, Task, View

_OPTIONS = {"quantum": "tokens a slice", "slots": "calls that run at once", "always_swap": "snapshot after each slice"}


class RoundRobin:
    """A ring of calls. Whoever used up its slice goes to the back, if somebody waits; the front is served."""

    name = "round_robin"
    parks = False

    def __init__(self, options: Options) -> None:
        """Raises ConfigError for an option that is unknown or impossible."""
        check_known(self.name, options, _OPTIONS)
        self._quantum = whole_number(self.name, options, "quantum", 32, least=1)
        self._slots = whole_number(self.name, options, "slots", 0, least=0)
        self._always_swap = switch(self.name, options, "always_swap")
        self._ring: OrderedDict[int, int] = OrderedDict()  # task -> tokens generated in its slice
        self._seats: dict[int, int] = {}  # task -> number that orders the ring
        self._next_seat = 0

    def observe(self, event: Event, now_s: float) -> None:
        """Keep the ring and the slices."""
        if isinstance(event, Arrived):
            self._sit(event.task)
        elif isinstance(event, Computed) and event.task in self._ring:
            self._ring[event.task] += event.generated
        elif isinstance(event, Finished):
            self._ring.pop(event.task, None)
            self._seats.pop(event.task, None)

    def decide(self, view: View, now_s: float) -> Plan:
        """Serve the front of the ring."""
        slots = min(self._slots or view.max_batch, view.max_batch)
        by_id = view.by_id()
        ousted = self._rotate(by_id, slots)
        served = [*islice(self._in_turn(by_id), slots)]
        front = {task.id for task in served}
        idle = self._residents(view, front)
        plan = Packer(view, served, may_displace=anyone, idle=idle).fill()
        if not plan.run:  # without swapping, those behind the front hold the memory until they have ended
            return Packer(view, self._in_turn(by_id), residents=self._residents(view, set())).fill()
        if self._always_swap and view.can_swap:
            plan.swap_out.extend(task.id for task in idle if task.id in ousted and task.id not in plan.swap_out)
        return plan

    def _sit(self, task: int) -> None:
        """Take a seat at the back, with a fresh slice."""
        self._ring[task] = 0
        self._ring.move_to_end(task)
        self._seats[task] = self._next_seat = self._next_seat + 1

    def _in_turn(self, by_id: Mapping[int, Task]) -> Iterator[Task]:
        return (by_id[task] for task in self._ring if task in by_id)

    def _residents(self, view: View, front: set[int]) -> list[Task]:
        """Tasks in the pool that are not at the front, in the order of the ring."""
        others = [t for t in view.active() if t.residency is Residency.RESIDENT and t.id not in front]
        return sorted((t for t in others if t.id in self._seats), key=lambda t: self._seats[t.id])

    def _rotate(self, by_id: Mapping[int, Task], slots: int) -> list[int]:
        """Move used-up slices to the back when somebody waits for a place; gives who was moved."""
        front = [*islice(self._in_turn(by_id), slots + 1)]
        waits = len(front) > slots or any(task.residency is not Residency.RESIDENT for task in front)
        ousted = [task.id for task in front[:slots] if waits and self._ring[task.id] >= self._quantum]
        for task in ousted:
            self._sit(task)
        return ousted
