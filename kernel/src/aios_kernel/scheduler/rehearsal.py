"""A pool that carries plans out, without threads or an engine: policies are tested against it step by step.

For tests of policies, ours and third parties': a plan that breaks a rule fails an assertion.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from aios_kernel.errors import AiosError
from aios_kernel.scheduler.protocol import Arrived, Computed, Finished, Plan, Policy, Residency, Task, View
from aios_kernel.syscalls import Priority

RESIDENT, QUEUED, SWAPPED = Residency.RESIDENT, Residency.QUEUED, Residency.SWAPPED
STEP_S = 0.01


@dataclass(frozen=True)
class Call:
    """What a task wants: tokens of its prompt and of its answer."""

    prompt: int
    answer: int
    agent: str = "a"
    group: str = "g"
    priority: Priority = "normal"
    program: str = ""
    deadline_s: float | None = None


@dataclass
class Pool:
    """Tasks, the clock and what was served. Asserts that plans keep the limits."""

    policy: Policy
    kv_tokens: int = 1024
    block: int = 16
    max_batch: int = 8
    max_step_tokens: int = 128
    can_swap: bool = True
    host_tokens: int = 0
    """Of swap space, as views tell; nothing here limits what is swapped out."""
    now_s: float = 0.0
    steps: int = 0
    tasks: dict[int, Task] = field(default_factory=dict[int, Task])
    left: dict[int, int] = field(default_factory=dict[int, int])
    ended: dict[int, int] = field(default_factory=dict[int, int])
    """Task and the step in which it ended."""
    refused: dict[int, AiosError] = field(default_factory=dict[int, AiosError])
    served: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Prompt tokens and generated tokens, by agent."""
    log: list[Plan] = field(default_factory=list[Plan])
    idle: int = 0
    """Steps that ran nothing although some task was open."""
    _next: int = 1

    def submit(self, call: Call) -> int:
        """A call arrives; gives its number."""
        number, self._next = self._next, self._next + 1
        self.tasks[number] = Task(
            id=number,
            program=call.program or f"p{number}",
            agent=call.agent,
            group=call.group,
            priority=call.priority,
            arrived_s=self.now_s,
            residency=QUEUED,
            length=call.prompt,
            pending=call.prompt,
            generated=0,
            deadline_s=call.deadline_s,
        )
        self.left[number] = call.answer
        self.policy.observe(Arrived(number, self.tasks[number].program, self.tasks[number]), self.now_s)
        return number

    def switch(self, policy: Policy) -> None:
        """Another policy decides; it hears of the open tasks."""
        self.policy = policy
        for task in self.tasks.values():
            policy.observe(Arrived(task.id, task.program, task), self.now_s)

    def run(self, most: int) -> None:
        """Step until everything has ended; `most` is how long that may take."""
        while self.tasks:
            assert self.steps < most, f"{len(self.tasks)} calls are open after {most} steps"
            self.step()

    def step(self) -> Plan:
        """One decision, carried out."""
        view = self.view()
        plan = self.policy.decide(view, self.now_s)
        self.log.append(plan)
        for number, error in plan.refuse:
            self.refused[number] = error
            self._end(number)
        self._move(plan)
        ran = self._compute([(n, t) for n, t in plan.run if n in self.tasks])
        if not ran and not plan.patient and not (plan.admit or plan.swap_in or plan.swap_out or plan.refuse):
            self._relieve()
        self.steps += 1
        self.now_s += STEP_S
        return plan

    def view(self) -> View:
        """The state as a policy sees it."""
        used = sum(self._held(task) for task in self.tasks.values())
        return View(
            [*self.tasks.values()],
            self.kv_tokens - used,
            self.kv_tokens,
            self.block,
            self.max_batch,
            self.max_step_tokens,
            self.can_swap,
            host_free=max(0, self.host_tokens - sum(t.length for t in self.tasks.values() if t.residency is SWAPPED)),
        )

    def _held(self, task: Task) -> int:
        return self._blocks(task.length - task.pending) if task.residency is RESIDENT else 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block) * self.block

    def _move(self, plan: Plan) -> None:
        assert self.can_swap or not plan.swap_out
        for numbers, source, target in (
            (plan.swap_out, RESIDENT, SWAPPED),
            (plan.swap_in, SWAPPED, RESIDENT),
            (plan.admit, QUEUED, RESIDENT),
        ):
            for number in numbers:
                assert self.tasks[number].residency is source
                self.tasks[number] = replace(self.tasks[number], residency=target)
        assert sum(self._held(task) for task in self.tasks.values()) <= self.kv_tokens

    def _compute(self, run: list[tuple[int, int]]) -> bool:
        assert len({number for number, _ in run}) == len(run) <= self.max_batch
        assert sum(tokens for _, tokens in run) <= self.max_step_tokens
        for number, tokens in run:
            task = self.tasks[number]
            assert task.residency is RESIDENT
            assert 1 <= tokens <= task.pending
            emitted = int(tokens == task.pending)
            length, pending = task.length + emitted, task.pending - tokens + emitted
            self.tasks[number] = replace(task, length=length, pending=pending, generated=task.generated + emitted)
            served = self.served.setdefault(task.agent, [0, 0])
            served[0] += tokens if not task.generated else 0
            served[1] += emitted
            self.policy.observe(Computed(number, task.program, tokens, emitted), self.now_s)
        assert sum(self._held(task) for task in self.tasks.values()) <= self.kv_tokens
        for number, _ in run:
            if self.tasks[number].generated >= self.left[number]:
                self._end(number)
        return bool(run)

    def _relieve(self) -> None:
        """As the dispatcher: residents that block each other lose the newest one."""
        self.idle += 1
        residents = [task for task in self.tasks.values() if task.residency is RESIDENT]
        if self.can_swap and len(residents) > 1:
            newest = max(residents, key=lambda task: (task.arrived_s, task.id))
            self.tasks[newest.id] = replace(newest, residency=SWAPPED)

    def _end(self, number: int) -> None:
        assert number not in self.ended, "a call ended twice"
        task = self.tasks.pop(number)
        self.ended[number] = self.steps
        self.policy.observe(Finished(number, task.program), self.now_s)
