"""Filling a step from a ranking: what every policy here shares once it has decided who comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aios_kernel.scheduler.protocol import Plan, Residency, Task, View


class Packer:
    """Builds a plan that fits the pool, the token budget and the batch, best-ranked task first.

    Args:
        view: the state to plan for.
        ranked: tasks, the one to serve first in front. Memory is taken from the back: when a resident task cannot
            grow, the last resident task behind it is swapped out.
        may_displace: whether this newcomer (queued or swapped) may push lower-ranked residents out.
        idle: residents that are not to run in this step; they rank behind all others when memory is short.
    """

    def __init__(
        self,
        view: View,
        ranked: Sequence[Task],
        may_displace: Callable[[Task], bool] = lambda _: False,
        *,
        idle: Sequence[Task] = (),
    ) -> None:
        self._plan = Plan()
        self._view = view
        self._ranked = ranked
        self._idle = idle
        self._may_displace = may_displace
        self._free = view.kv_free
        self._budget = view.max_step_tokens
        self._slots = view.max_batch
        self._run: dict[int, int] = {}  # task -> tokens, in the order of the plan
        self._gone: set[int] = set()

    def fill(self) -> Plan:
        """Decoding contexts first (one token each), then newcomers and prefill chunks in rank order."""
        for task in self._ranked:
            if task.residency is Residency.RESIDENT and task.pending == 1:
                self._continue(task)
        full = False  # nobody overtakes the first newcomer that does not fit
        for task in self._ranked:
            if task.residency is not Residency.RESIDENT:
                full = full or not self._bring_in(task)
            elif task.pending > 1:
                self._continue(task)
        self._plan.run = list(self._run.items())
        return self._plan

    def _continue(self, task: Task) -> None:
        """Run a resident task: its whole chunk if room can be made for it, else what fits."""
        if task.id in self._gone or not self._slots:
            return
        tokens = min(task.pending, self._budget)
        if tokens and not self._make_room(self._view.kv_need(task, tokens), task):
            tokens = min(tokens, self._view.kv_fits(task, self._free))
        if tokens > 0:
            self._take(task, tokens, self._view.kv_need(task, tokens))

    def _bring_in(self, task: Task) -> bool:
        """Admit or swap in, and run as much as the budget allows; False: there is no room for it.

        Room is asked for the whole prompt, so that a prefill once begun need not stop half way.
        """
        if not self._slots or not self._budget:
            return False
        whole = self._view.kv_need(task, task.pending)
        if whole > self._free and not (self._may_displace(task) and self._make_room(whole, task)):
            return False
        target = self._plan.admit if task.residency is Residency.QUEUED else self._plan.swap_in
        target.append(task.id)
        self._take(task, min(task.pending, self._budget), whole)
        return True

    def _take(self, task: Task, tokens: int, kv: int) -> None:
        self._run[task.id] = tokens
        self._free -= kv
        self._budget -= tokens
        self._slots -= 1

    def _make_room(self, need: int, claimant: Task) -> bool:
        """Swap out tasks ranked behind the claimant, last first, until `need` tokens of KV are free.

        Nobody is swapped out when that would still not be enough.
        """
        if need <= self._free:
            return True
        victims: list[Task] = []
        gain = 0
        for victim in self._behind(claimant) if self._view.can_swap else ():
            victims.append(victim)
            gain += self._view.kv_held(victim) + self._planned(victim)
            if need <= self._free + gain:
                for gone in victims:
                    self._displace(gone)
                return True
        return False

    def _behind(self, claimant: Task) -> list[Task]:
        """Residents ranked behind a task, the last first."""
        found: list[Task] = []
        for task in (*reversed(self._idle), *reversed(self._ranked)):
            if task is claimant:
                break
            if task.residency is Residency.RESIDENT and task.id not in self._gone:
                found.append(task)
        return found

    def _planned(self, task: Task) -> int:
        """KV that this plan already takes for a resident task."""
        return self._view.kv_need(task, self._run[task.id]) if task.id in self._run else 0

    def _displace(self, victim: Task) -> None:
        self._free += self._view.kv_held(victim) + self._planned(victim)
        tokens = self._run.pop(victim.id, None)
        if tokens is not None:
            self._budget += tokens
            self._slots += 1
        self._gone.add(victim.id)
        self._plan.swap_out.append(victim.id)
