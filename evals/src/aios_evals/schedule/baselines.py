"""The engine alone, and oracles: what the kernel's policies are measured against."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from aios_evals.schedule.cost import critical_s
from aios_evals.schedule.memory import Order
from aios_kernel.scheduler.program import ProgramPolicy
from aios_kernel.scheduler.program_queue import CLASSES
from aios_kernel.scheduler.protocol import Event, Options, Plan, Residency, Task, View

if TYPE_CHECKING:
    from aios_evals.schedule.simulator import Simulation


class EngineLru:
    """First come, first served, as vLLM does: running calls first, then the queue in order, chunked prefill.

    A queued call is admitted when its whole prompt fits. When decoding outgrows the pool, the newest running call is
    preempted: it queues again, in front, and computes anew what the prefix cache has lost by then.
    """

    name = "engine_lru"
    parks = False
    engine = True

    def __init__(self, simulation: Simulation) -> None:
        self._sim = simulation
        self._running: dict[int, None] = {}  # in order of admission

    def observe(self, event: Event, now_s: float) -> None:
        """The view has all it needs."""

    def decide(self, view: View, now_s: float) -> Plan:
        """Running calls, then the queue until something is full."""
        plan = Plan()
        tasks = {task.id: task for task in view.tasks}
        self._running = {number: None for number in self._running if number in tasks}
        free, budget = self._run_residents(view, tasks, plan)
        if not plan.swap_out:
            self._admit(view, plan, free, budget)
        return plan

    def _run_residents(self, view: View, tasks: dict[int, Task], plan: Plan) -> tuple[int, int]:
        free, budget = view.kv_free, view.max_step_tokens
        order = [*self._running]
        while order:
            task = tasks[order.pop(0)]
            tokens = min(task.pending, budget)
            if not tokens:
                break
            while view.kv_need(task, tokens) > free and order:
                free += view.kv_held(tasks[order[-1]])
                plan.swap_out.append(order[-1])
                del self._running[order.pop()]
            if view.kv_need(task, tokens) > free:
                plan.swap_out.append(task.id)
                del self._running[task.id]
                break
            plan.run.append((task.id, tokens))
            free -= view.kv_need(task, tokens)
            budget -= tokens
        return free, budget

    def _admit(self, view: View, plan: Plan, free: int, budget: int) -> None:
        for task in view.tasks:
            if not budget or len(plan.run) == view.max_batch:
                break
            if task.residency is not Residency.QUEUED:
                continue
            need = -(-task.length // view.block_size) * view.block_size
            if need > free:
                break
            left = task.length - self._cached(task)
            plan.admit.append(task.id)
            plan.run.append((task.id, min(left, budget)))
            self._running[task.id] = None
            free -= need
            budget -= min(left, budget)

    def _cached(self, task: Task) -> int:
        """What the engine's own prefix cache has of a prompt."""
        opened = self._sim.open[task.id]
        most = opened.length - 1 if opened.generated else opened.call.shared
        return min(sum(self._sim.memory.found(task.program)), most)


def farthest(simulation: Simulation) -> Order:
    """Evict what is used again last: paused programs by the end of their pause, before those that queue."""

    def choose(cached: OrderedDict[str, int]) -> str:
        def next_use(name: str) -> tuple[int, float]:
            run = simulation.runs[name]
            return (0, run.task.arrived_s) if run.task is not None else (1, run.next_s)

        return max(cached, key=next_use)

    return choose


class OracleEviction(EngineLru):
    """The engine alone with the best choice of what to evict: give the simulation `farthest` as its order."""

    name = "oracle_eviction"


class OracleAdmission(ProgramPolicy):
    """Whole-program admission that knows each program's remaining work, and lets in the least."""

    name = "oracle_admission"

    def __init__(self, simulation: Simulation, options: Options) -> None:
        super().__init__(options)
        self._sim = simulation

    def rank(self, task: Task) -> tuple[float, ...]:
        """Within its class: seconds that the program still needs, alone on the device."""
        run = self._sim.runs[task.program]
        rest = replace(run.program, calls=run.program.calls[run.index :])
        return (CLASSES[task.priority], critical_s(self._sim.setup.cost, rest), task.arrived_s)
