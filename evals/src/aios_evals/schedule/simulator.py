"""A discrete-event simulator of one GPU that a scheduling policy drives, step by step.

The policy is the kernel's own object: it gets the views, events and plans of `aios_kernel.scheduler.protocol`. Steps
that repeat the one before are taken at once, until something happens or `HOLD_S` have passed; the policy then gets one
`Computed` a task. The policy's own thinking takes no time here.

Two kinds of policies are told apart by `parks`. For those that park, contexts of ended calls stay pinned until the
policy stows or drops them. For the others they stay in the prefix cache while nobody needs their room. A policy with
`engine` is the engine alone: evicted cache goes to host memory, and preemption computes anew.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aios_evals.schedule.cost import Cost
from aios_evals.schedule.memory import Memory, Order, oldest
from aios_evals.schedule.state import Open, Run, Tally
from aios_evals.schedule.workload import Program
from aios_kernel.scheduler.protocol import (
    Arrived,
    Computed,
    Event,
    Finished,
    Parked,
    Plan,
    Policy,
    ProgramEnded,
    Residency,
    ToolBegan,
    ToolEnded,
    View,
)

HOLD_S = 0.25
"""How long a plan may be repeated, and how long nothing may run before the policy is asked again."""
RESIDENT, QUEUED, SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED


@dataclass(frozen=True, slots=True)
class Setup:
    """The engine. Counts are in tokens."""

    cost: Cost
    pool: int
    host: int = 0
    block: int = 16
    max_batch: int = 256
    max_step_tokens: int = 8192


class Simulation:
    """One policy on one workload; `run` once.

    Args:
        setup: the engine.
        programs: to run, in order.
        make_policy: called with this simulation, so that an oracle can look into it.
        slots: how many programs run at once in a closed loop: when one ends, the next one starts.
        arrivals: when each program starts, in an open loop; overrides `slots`.
        order: of eviction from the prefix cache.
        watch: called before each step with the simulation; for tests.
    """

    def __init__(
        self,
        setup: Setup,
        programs: Sequence[Program],
        make_policy: Callable[[Simulation], Policy],
        *,
        slots: int = 0,
        arrivals: Sequence[float] = (),
        order: Callable[[Simulation], Order] | None = None,
        watch: Callable[[Simulation], None] | None = None,
    ) -> None:
        self.setup = setup
        self.now_s = 0.0
        self.runs: dict[str, Run] = {}
        self.open: dict[int, Open] = {}
        self.tally = Tally()
        self._waiting = list(reversed(programs))
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._parked: dict[str, Parked] = {}
        self._watch = watch
        self._link_s = 0.0  # when the link to the device is free
        self._out = 0  # tokens to the host that go beside the next step
        self._sampled_s = -1.0
        self._idled = 0.0  # seconds in which nothing ran and nothing was to come
        self.policy = make_policy(self)
        self.parks = getattr(self.policy, "parks", False)
        self.engine = getattr(self.policy, "engine", False)
        evict = order(self) if order else oldest
        self.memory = Memory(setup.pool, setup.host, setup.block, offload=self.engine, order=evict)
        self._written = 0
        starts = list(arrivals[: len(programs)]) if arrivals else [0.0] * min(slots or len(programs), len(programs))
        self._closed = not arrivals
        for start in starts:
            self._at(start, self._start_next)

    def run(self) -> Tally:
        """Until every program has ended. Raises RuntimeError when the policy never lets one go on."""
        while True:
            self._happen()
            if not self.open:
                if not self._heap:
                    break
                self.now_s = self._heap[0][0]
                continue
            self._step()
        if self._waiting or any(run.ended_s is None for run in self.runs.values()):
            raise RuntimeError("programs are left, but nothing will happen any more")
        self.tally.now_s = self.now_s
        return self.tally

    # --- programs ---------------------------------------------------------------------------------------------------

    def _at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time_s, next(self._order), action))

    def _happen(self) -> None:
        while self._heap and self._heap[0][0] <= self.now_s:
            heapq.heappop(self._heap)[2]()

    def _tell(self, event: Event) -> None:
        self.policy.observe(event, self.now_s)

    def _start_next(self) -> None:
        program = self._waiting.pop()
        self._start(program, program.name, None)

    def _start(self, program: Program, root: str, parent: Run | None) -> None:
        run = self.runs[program.name] = Run(program, root, parent, self.now_s)
        self._arrive(run)

    def _arrive(self, run: Run) -> None:
        call = run.call
        run.task = task = Open(next(self._ids), run, call, self.now_s, call.prompt)
        self.open[task.id] = task
        self.tally.prompted += call.prompt
        self.tally.necessary += call.new
        if not call.shared and not self.parks:
            self.memory.forget(run.name)
        self._tell(Arrived(task.id, run.name))

    def _pause(self, run: Run) -> None:
        """After a call: think, and let sub-agents run, until the next one."""
        finished = run.call
        run.index += 1
        run.paused_s = self.now_s
        call = run.call
        run.next_s = self.now_s + call.think_s
        run.waits_for = 1 + len(call.children)
        run.tool = "agent" if call.children else "tool" if finished.tool == "tool" else None
        if run.tool is not None:
            self._tell(ToolBegan(run.name, run.tool))
        self._at(run.next_s, lambda: self._go_on(run))
        for child in call.children:
            self._start(child, run.root, run)

    def _go_on(self, run: Run) -> None:
        run.waits_for -= 1
        if run.waits_for:
            return
        if run.tool is not None:
            self._tell(ToolEnded(run.name, run.tool, self.now_s - run.paused_s))
        self._arrive(run)

    def _end(self, run: Run) -> None:
        run.ended_s = self.now_s
        self._unpark(run, keep=False)
        self.memory.forget(run.name)
        self._tell(ProgramEnded(run.name))
        if run.parent is not None:
            self._go_on(run.parent)
            return
        self.tally.completion_s[run.name] = self.now_s - run.started_s
        if self._closed and self._waiting:
            self._start_next()

    def _finish(self, task: Open, *, failed: bool = False) -> None:
        """A call ends: what it computed is parked, or left to the prefix cache."""
        run = task.run
        del self.open[task.id]
        run.task = None
        last = run.index + 1 == len(run.program.calls)
        self.tally.ended += 1
        self.tally.failed += failed
        self.tally.turned_s.append(self.now_s - task.arrived_s)
        if task.residency is SWAPPED:
            self.memory.pin_host(-task.kv)
        elif task.residency is RESIDENT:
            self.memory.leave(run.name, task.kv)
            if self.parks and not last:
                self._park(run, task.kv)
        self._tell(Finished(task.id, run.name))
        if last:
            self._end(run)
        else:
            self._pause(run)

    # --- parked contexts --------------------------------------------------------------------------------------------

    def _park(self, run: Run, tokens: int) -> None:
        self.memory.cache.take(run.name)
        self.memory.pin(0, tokens)
        run.parked = Parked(run.name, "g", run.program.priority, RESIDENT, tokens, self.now_s, run.root)
        self._parked[run.name] = run.parked

    def _unpark(self, run: Run, *, keep: bool) -> int:
        """A parked context is gone, or left to the prefix cache; gives the tokens it had in the pool."""
        parked, run.parked = run.parked, None
        if parked is None:
            return 0
        del self._parked[run.name]
        if parked.residency is SWAPPED:
            self.memory.pin_host(-parked.length)
            return 0
        self.memory.leave(run.name, parked.length)
        if not keep:
            self.memory.cache.take(run.name)
        return parked.length

    def _replace(self, run: Run, residency: Residency) -> None:
        old = run.parked
        assert old is not None
        new = Parked(old.program, old.group, old.priority, residency, old.length, old.since_s, old.root)
        run.parked = self._parked[run.name] = new
        if run.task is not None:
            run.task.seen = None

    def _move_parked(self, plan: Plan) -> bool:
        moved = False
        for name in plan.stow:
            parked = self._parked.get(name)
            if parked is not None and parked.residency is RESIDENT and parked.length <= self.memory.host_free:
                self.memory.leave(name, parked.length)
                self.memory.cache.take(name)
                self.memory.pin_host(parked.length)
                self._replace(self.runs[name], SWAPPED)
                self._out += parked.length
                moved = True
        for name in plan.fetch:
            parked = self._parked.get(name)
            if parked is None or parked.residency is RESIDENT:
                continue
            if self.memory.blocks(parked.length) <= self.memory.free:
                self.memory.pin_host(-parked.length)
                self.memory.pin(0, parked.length)
                self._replace(self.runs[name], RESIDENT)
                self._fly(self.runs[name], parked.length)
                moved = True
        return moved

    def _fly(self, run: Run, tokens: int) -> None:
        """Tokens are on their way from the host to the pool."""
        self._link_s = max(self._link_s, self.now_s) + self.setup.cost.move_s(tokens)
        run.ready_s = self._link_s
        self.tally.swapped += tokens

    # --- one step ---------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """What the policy sees now."""
        setup, memory = self.setup, self.memory
        return View(
            [task.seen or self._show(task) for task in self.open.values()],
            memory.free,
            memory.pool,
            setup.block,
            setup.max_batch,
            setup.max_step_tokens,
            setup.host > 0 or self.engine,
            tuple(self._parked.values()) if self.parks else (),
            memory.host_free if not self.engine else 0,
        )

    def _show(self, task: Open):
        if task.residency is not QUEUED:
            return task.show(task.kv)
        parked = task.run.parked
        held = parked.length if parked is not None and parked.residency is RESIDENT else 0
        return task.show(min(held, task.call.shared))

    def _step(self) -> None:
        if self._watch is not None:
            self._watch(self)
        self.tally.decisions += 1
        plan = self.policy.decide(self.view(), self.now_s)
        moved = self._move(plan)
        batch = self._batch(plan)
        if batch:
            self._compute(batch)
        elif self._out:
            self._pass(self.setup.cost.move_s(self._out))
        elif not moved:
            self._wait()

    def _move(self, plan: Plan) -> bool:
        moved = False
        for name in plan.drop:
            run = self.runs.get(name)
            if run is not None and run.parked is not None:
                self._unpark(run, keep=True)
                if run.task is not None:
                    run.task.seen = None
                moved = True
        for number in plan.swap_out:
            task = self.open.get(number)
            if task is not None and task.residency is RESIDENT:
                moved |= self._preempt(task) if self.engine else self._swap_out(task)
        moved |= self._move_parked(plan)
        for number in plan.swap_in:
            task = self.open.get(number)
            if task is not None and task.residency is SWAPPED:
                moved |= self._swap_in(task)
        for number in plan.admit:
            task = self.open.get(number)
            if task is not None and task.residency is QUEUED:
                moved |= self._admit(task)
        return moved

    def _preempt(self, task: Open) -> bool:
        """The engine's own way: its blocks go to the prefix cache, and it queues again."""
        self.memory.leave(task.run.name, task.kv)
        task.residency, task.kv, task.seen = QUEUED, 0, None
        return True

    def _swap_out(self, task: Open) -> bool:
        if task.kv > self.memory.host_free:
            return False
        self.memory.pin_host(task.kv)
        self.memory.leave(task.run.name, task.kv)
        self.memory.cache.take(task.run.name)
        self._out += task.kv
        task.residency, task.seen = SWAPPED, None
        return True

    def _swap_in(self, task: Open) -> bool:
        if self.memory.blocks(task.kv) > self.memory.free:
            return False
        self.memory.pin_host(-task.kv)
        self.memory.pin(0, task.kv)
        self._fly(task.run, task.kv)
        task.residency, task.seen = RESIDENT, None
        return True

    def _admit(self, task: Open) -> bool:
        """Take up what is left of the program's last context: parked, or in the prefix cache."""
        run = task.run
        parked = self._unpark(run, keep=False)
        pooled, behind = (parked, 0) if parked else self.memory.found(run.name)
        most = task.length - 1 if task.generated else task.call.shared
        held = min(pooled + behind, most)
        if self.memory.blocks(held) > self.memory.free:
            return False
        self.memory.forget(run.name)
        self.memory.pin(0, held)
        if held > pooled:
            self._fly(run, held - pooled)
        task.residency, task.kv, task.seen = RESIDENT, held, None
        return True

    def _batch(self, plan: Plan) -> list[tuple[Open, int]]:
        """The part of the plan that can run."""
        batch: dict[int, tuple[Open, int]] = {}
        free, budget = self.memory.free, self.setup.max_step_tokens
        blocks = self.memory.blocks
        for number, tokens in plan.run:
            task = self.open.get(number)
            if task is None or task.residency is not RESIDENT or number in batch or task.run.ready_s > self.now_s:
                continue
            tokens = min(tokens, task.length - task.kv, budget)
            need = blocks(task.kv + tokens) - blocks(task.kv)
            if tokens > 0 and need <= free and len(batch) < self.setup.max_batch:
                batch[number] = (task, tokens)
                free -= need
                budget -= tokens
        return list(batch.values())

    def _compute(self, batch: list[tuple[Open, int]]) -> None:
        cost = self.setup.cost
        chunks = [(tokens, task.kv) for task, tokens in batch if task.length - task.kv > 1 or not task.generated]
        decoding = [task for task, _ in batch if task.length - task.kv == 1 and task.generated]
        context = sum(task.length for task in decoding)
        first = cost.steps_s(1, chunks, len(decoding), context)
        steps = self._repeats(batch, len(decoding), first)
        seconds = max(cost.steps_s(steps, chunks, len(decoding), context), cost.move_s(self._out))
        if self.memory.written > self._written:  # evicted to the host beside this step
            moved, self._written = self.memory.written - self._written, self.memory.written
            self.tally.swapped += moved
            seconds = max(seconds, cost.move_s(moved))
        self._idled = 0.0
        self.tally.steps += steps
        self.tally.busy_s += seconds
        self._sample()
        for task, _ in batch:
            if not task.started:
                task.started = True
                self.tally.waited_s.append(self.now_s - task.arrived_s)
        self._pass(seconds)
        for task, tokens in batch:
            self._advance(task, tokens, steps)

    def _pass(self, seconds: float) -> None:
        self.tally.swapped += self._out
        self._out = 0
        self.now_s += seconds

    def _repeats(self, batch: list[tuple[Open, int]], decoding: int, first_s: float) -> int:
        """How many steps are like the first one: nobody ends, no prefill is through, the pool lasts, nothing comes."""
        limit = HOLD_S
        if self._heap:
            limit = min(limit, self._heap[0][0] - self.now_s)
        if self._link_s > self.now_s:
            limit = min(limit, self._link_s - self.now_s)
        steps = max(1, -int(-limit // first_s))
        for task, tokens in batch:
            left = task.length - task.kv
            if left == 1 and task.generated:
                steps = min(steps, task.call.output - task.generated)
            else:
                steps = min(steps, left // tokens)
        if steps > 1:
            growth = sum(tokens for _, tokens in batch)
            room = self.memory.free - len(batch) * self.setup.block
            steps = max(1, min(steps, room // growth))
        return steps

    def _advance(self, task: Open, tokens: int, steps: int) -> None:
        decoding = bool(task.generated) and task.length - task.kv == 1
        computed = steps * tokens
        self.memory.pin(task.kv, task.kv + computed)
        task.kv += computed
        task.seen = None
        generated = steps if decoding else int(task.kv == task.length)
        if not decoding:
            self.tally.prefilled += computed
        task.generated += generated
        task.length += generated
        self._tell(Computed(task.id, task.run.name, computed, generated))
        if task.generated >= task.call.output:
            self._finish(task)

    def _wait(self) -> None:
        """Nothing could run: until something happens. Residents that block each other for good: the newest fails."""
        times = [self._heap[0][0]] if self._heap else []
        times += [task.run.ready_s for task in self.open.values() if task.run.ready_s > self.now_s]
        if times:
            self.now_s = min([self.now_s + HOLD_S, *times])
            return
        if self._parked and self._idled < 3600:
            self._idled += HOLD_S
            self.now_s += HOLD_S
            return
        residents = [task for task in self.open.values() if task.residency is RESIDENT]
        if not residents:
            raise RuntimeError(f"{self.policy.name} runs nothing although the pool is free")
        self._finish(residents[-1], failed=True)

    def _sample(self) -> None:
        """A point of the timeline, at most one each second."""
        if self.now_s < self._sampled_s + 1.0:
            return
        self._sampled_s = self.now_s
        running = sum(task.kv for task in self.open.values() if task.residency is RESIDENT)
        queued = sum(task.residency is QUEUED for task in self.open.values())
        memory = self.memory
        parked = memory.pinned - running
        host = memory.host_pinned + memory.host_cache.total
        self.tally.timeline.append((self.now_s, running, max(0, parked), memory.cache.total, host, queued))
