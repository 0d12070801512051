"""Round robin with time slices counted in generated tokens.

Options: `quantum` (tokens a slice, default 32), `slots` (calls that run at once, default as many as the engine takes)
and `always_swap` (snapshot a context at the end of its slice even if memory is not short; to test snapshots).
"""

from __future__ import annotations

from aios_kernel.scheduler.options import check_known, switch, whole_number
from aios_kernel.scheduler.packing import Packer
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
        self._ring: dict[int, int] = {}  # task -> tokens generated in its slice; insertion order is the ring

    def observe(self, event: Event, now_s: float) -> None:
        """Keep the ring and the slices."""
        if isinstance(event, Arrived):
            self._ring[event.task] = 0
        elif isinstance(event, Computed) and event.task in self._ring:
            self._ring[event.task] += event.generated
        elif isinstance(event, Finished):
            self._ring.pop(event.task, None)

    def decide(self, view: View, now_s: float) -> Plan:
        """Serve the front of the ring."""
        slots = min(self._slots or view.max_batch, view.max_batch)
        by_id = {task.id: task for task in view.tasks}
        ousted = self._rotate(by_id, slots)
        ranked = [by_id[task] for task in self._ring if task in by_id]
        served, idle = ranked[:slots], [task for task in ranked[slots:] if task.residency is Residency.RESIDENT]
        plan = Packer(view, served, may_displace=lambda _: True, idle=idle).fill()
        if not plan.run:  # without swapping, those behind the front hold the memory until they have ended
            return Packer(view, ranked).fill()
        if self._always_swap and view.can_swap:
            plan.swap_out.extend(task.id for task in idle if task.id in ousted and task.id not in plan.swap_out)
        return plan

    def _rotate(self, by_id: dict[int, Task], slots: int) -> list[int]:
        """Move used-up slices to the back when somebody waits for a place; gives who was moved."""
        ring = [task for task in self._ring if task in by_id]
        waiting = [t for i, t in enumerate(ring) if i >= slots or by_id[t].residency is not Residency.RESIDENT]
        moved: list[int] = []
        for task in ring[:slots]:
            if waiting and self._ring[task] >= self._quantum:
                del self._ring[task]
                self._ring[task] = 0
                moved.append(task)
        return moved
