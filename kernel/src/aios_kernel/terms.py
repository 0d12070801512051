"""What a run of an agent may use: tokens, time, tools. A child stands under its parent's terms and its own."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from aios_kernel import errors
from aios_kernel.syscalls import AgentExit, AgentSpawn, Syscall, ToolEnd


@dataclass(slots=True)
class Budget:
    """Tokens of one run and its children: prompts and answers, as their usage counts them."""

    limit: int
    spent: int = 0

    @property
    def left(self) -> int:
        """Tokens that remain; 0 also after a call that took more."""
        return max(0, self.limit - self.spent)


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one program.

    Attributes:
        budgets: its own and those of the programs above it; a token counts in each.
        ends_at_s: when its time is over, in `time.monotonic()` seconds; None: never.
        run_s: how long that run might take, in seconds, to say so.
        tools: names of the tools that it may call; None: all.
    """

    budgets: tuple[Budget, ...] = ()
    ends_at_s: float | None = None
    run_s: float = 0.0
    tools: frozenset[str] | None = None

    def below(self, call: AgentSpawn) -> Terms:
        """The terms of a child that asks for these. Raises InvalidRequest for a limit that is no positive number."""
        for name, limit in (("budget", call.budget), ("deadline_s", call.deadline_s)):
            if limit is not None and not 0 <= limit < math.inf:
                raise errors.InvalidRequest(f"{name} is {limit}; it must be 0 or more", fix=f"change {name}")
        own = () if call.budget is None else (Budget(call.budget),)
        ends_at_s, run_s = self.ends_at_s, self.run_s
        if call.deadline_s is not None:
            wanted = time.monotonic() + call.deadline_s
            if ends_at_s is None or wanted < ends_at_s:
                ends_at_s, run_s = wanted, call.run_s or call.deadline_s
        tools = self.tools
        if call.tools is not None:
            tools = frozenset(call.tools) if tools is None else tools.intersection(call.tools)
        return Terms((*self.budgets, *own), ends_at_s, run_s, tools)

    def spend(self, tokens: int) -> None:
        """Count the tokens of a call that has ended."""
        for budget in self.budgets:
            budget.spent += tokens

    def room(self, prompt: int) -> int | None:
        """Tokens that an answer to this prompt may have; None: no budget. Raises BudgetExceeded when there is none."""
        if not self.budgets:
            return None
        least = min(self.budgets, key=lambda budget: budget.left)
        if least.left <= prompt:
            raise errors.BudgetExceeded(
                f"of the run's budget of {least.limit:,} tokens {least.spent:,} are spent; this prompt has {prompt:,}",
                fix="raise budget= of the decorator, or start another run",
            )
        return least.left - prompt

    def is_over(self, call: Syscall) -> bool:
        """Whether the deadline has passed and ends this call; what ends a tool or the run itself is always heard."""
        return (
            self.ends_at_s is not None
            and not isinstance(call, AgentSpawn | AgentExit | ToolEnd)
            and time.monotonic() >= self.ends_at_s
        )

    def late(self) -> errors.DeadlineExceeded:
        """The error of a call that the run's deadline ends."""
        return errors.DeadlineExceeded(
            f"the run's deadline of {self.run_s:g} s has passed", fix="raise deadline= of the decorator"
        )
