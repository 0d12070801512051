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
    """

    def __init__(
        self, view: View, ranked: Sequence[Task], may_displace: Callable[[Task], bool] = lambda _: False
    ) -> None:
        self.plan = Plan()
        self._view = view
        self._ranked = ranked
        self._may_displace = may_displace
        self._free = view.kv_free
        self._budget = view.max_step_tokens
        self._slots = view.max_batch
        self._gone: set[int] = set()

    def fill(self) -> Plan:
        """Decoding contexts first (one token each), then newcomers and prefill chunks in rank order."""
        residents = [task for task in self._ranked if task.residency is Residency.RESIDENT]
        for task in residents:
            if task.pending == 1:
                self._run(task)
        for position, task in enumerate(self._ranked):
            if task.residency is Residency.RESIDENT:
                if task.pending > 1:
                    self._run(task)
            elif not self._bring_in(task, position):
                break  # nobody overtakes the first that does not fit
        return self.plan

    def _run(self, task: Task) -> None:
        if task.id in self._gone or not self._slots or not self._budget:
            return
        tokens = min(task.pending, self._budget)
        if not self._make_room(self._view.kv_need(task, tokens), task):
            return
        self._take(task, tokens, self._view.kv_need(task, tokens))

    def _bring_in(self, task: Task, position: int) -> bool:
        """Admit or swap in, and run as much as fits; False: there is no room for it."""
        if not self._slots or not self._budget:
            return False
        whole = self._view.kv_need(task, task.pending)
        displacing = task if self._may_displace(task) else None
        if whole > self._free and (displacing is None or not self._make_room(whole, displacing)):
            return False
        target = self.plan.admit if task.residency is Residency.QUEUED else self.plan.swap_in
        target.append(task.id)
        self._take(task, min(task.pending, self._budget), whole)
        return True

    def _take(self, task: Task, tokens: int, kv: int) -> None:
        self.plan.run.append((task.id, tokens))
        self._free -= kv
        self._budget -= tokens
        self._slots -= 1

    def _make_room(self, need: int, claimant: Task) -> bool:
        """Swap out tasks ranked behind the claimant, last first, until `need` tokens of KV are free."""
        planned = {task_id for task_id, _ in self.plan.run}
        for victim in reversed(self._ranked):
            if need <= self._free or victim is claimant:
                break
            if victim.residency is Residency.RESIDENT and victim.id not in self._gone and self._view.can_swap:
                if victim.id in planned:
                    self._unplan(victim)
                self._gone.add(victim.id)
                self.plan.swap_out.append(victim.id)
                self._free += self._view.kv_held(victim)
        return need <= self._free

    def _unplan(self, victim: Task) -> None:
        tokens = next(n for task_id, n in self.plan.run if task_id == victim.id)
        self.plan.run.remove((victim.id, tokens))
        self._free += self._view.kv_need(victim, tokens)
        self._budget += tokens
        self._slots += 1
