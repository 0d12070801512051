"""Filling a step from a ranking: what every policy here shares once it has decided who comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from aios_kernel.scheduler.protocol import Plan, Residency, Task, View

_RESIDENT, _QUEUED = Residency.RESIDENT, Residency.QUEUED


class Packer:
    """Builds a plan that fits the pool, the token budget and the batch, best-ranked task first.

    Args:
        view: the state to plan for.
        ranked: tasks, the one to serve first in front; read no further than somebody can still be served, so that it
            may be a generator over thousands. Memory is taken from the back: when a resident task cannot grow, the
            last resident task behind it is swapped out.
        may_displace: whether a newcomer (queued or swapped) may push out a resident that ranks behind it; None: never.
        residents: the resident ones among `ranked`, in the same order; None: found there.
        idle: residents that are not to run in this step; they rank behind all others when memory is short.
        spare: prefill tokens in a step, beside contexts that decode, for tasks of which `is_spare` is true: what these
            get in excess of their share must not slow the others down.
        is_spare: None: no task.
    """

    def __init__(
        self,
        view: View,
        ranked: Iterable[Task],
        may_displace: Callable[[Task, Task], bool] | None = None,
        *,
        residents: Sequence[Task] | None = None,
        idle: Sequence[Task] = (),
        spare: int = 0,
        is_spare: Callable[[Task], bool] | None = None,
    ) -> None:
        if residents is None:
            ranked = [*ranked]
            residents = [task for task in ranked if task.residency is _RESIDENT]
        self._plan = Plan()
        self._view = view
        self._ranked = ranked
        self._residents = residents
        self._idle = idle
        self._may_displace = may_displace
        self._free = view.kv_free
        self._budget = view.max_step_tokens
        self._slots = view.max_batch
        self._run: dict[int, int] = {}  # task -> tokens, in the order of the plan
        self._gone: set[int] = set()
        self._spare = spare
        self._is_spare = is_spare
        self._passed = 0  # residents that the ranking has named so far

    def fill(self) -> Plan:
        """Decoding contexts first (one token each), then newcomers and prefill chunks in rank order."""
        ranked, late = self._sift()
        self._decode(late, wanted=False)
        self._serve(ranked)
        if late:
            self._decode(late, wanted=True)
        self._plan.run = list(self._run.items())
        return self._plan

    def _sift(self) -> tuple[Iterator[Task], set[int]]:
        """The ranking, and who decodes last: with more residents than places in the batch, all but the best-ranked.

        A newcomer counts among the best only if it may take the last place in the batch.
        """
        ranked = iter(self._ranked)
        places = self._view.max_batch
        if len(self._residents) < places or not self._view.can_swap or self._may_displace is None:
            return ranked, set()
        head, best = list[Task](), set[int]()
        for task in ranked:
            head.append(task)
            if task.residency is not _RESIDENT and not self._outdoes(task):
                break  # nobody overtakes it
            best.add(task.id)
            if len(best) == places:
                break
        best.update(islice((task.id for task in self._residents if task.id not in best), places - len(best)))
        return chain(head, ranked), {task.id for task in self._residents} - best

    def _outdoes(self, newcomer: Task) -> bool:
        """Whether a newcomer may take the last place in the batch from the resident that has it."""
        may = self._may_displace
        return may is not None and may(newcomer, self._residents[self._view.max_batch - 1])

    def _decode(self, late: set[int], *, wanted: bool) -> None:
        size = self._view.block_size
        for place, task in enumerate(self._residents):
            if task.pending != 1 or (task.id in late) is not wanted:
                continue
            if (task.length - 1) % size and self._slots and self._budget and task.id not in self._gone:
                self._take(task, 1, 0)  # there is room in its last block
            else:
                self._continue(task, place)

    def _serve(self, ranked: Iterator[Task]) -> None:
        """Newcomers and prefills, until there is nothing left to give or nobody left to take."""
        chunks = sum(task.pending > 1 for task in self._residents)
        for task in ranked if self._budget and self._slots else ():
            if task.residency is not _RESIDENT:
                if not self._bring_in(task):
                    break  # nobody overtakes the first newcomer that does not fit
            else:
                self._passed += 1
                if task.pending > 1:
                    chunks -= 1
                    self._continue(task, self._passed - 1)
            if not self._budget or not self._slots:
                return
        if chunks:
            self._go_on(self._passed)

    def _go_on(self, place: int) -> None:
        """Prefills of the residents from a place in the ranking on, without a look at those outside."""
        for number in range(place, len(self._residents)):
            if not self._budget or not self._slots:
                return
            if self._residents[number].pending > 1:
                self._continue(self._residents[number], number)

    def _continue(self, task: Task, place: int) -> None:
        """Run a resident task: its whole chunk if room can be made for it, else what fits."""
        if task.id in self._gone or not self._slots:
            return
        tokens = self._chunk(task)
        if tokens and not self._make_room(self._view.kv_need(task, tokens), self._behind(place + 1)):
            tokens = min(tokens, self._view.kv_fits(task, self._free))
        if tokens > 0:
            self._take(task, tokens, self._view.kv_need(task, tokens))

    def _bring_in(self, task: Task) -> bool:
        """Admit or swap in, and run as much as the budget allows; False: there is no room for it.

        Room is asked for the whole prompt, so that a prefill once begun need not stop half way.
        """
        if len(self._residents) >= self._view.max_batch and not self._outdoes(task):
            return False
        tokens = self._chunk(task)
        if not tokens:
            return False
        whole = self._view.kv_need(task, task.pending)
        if whole > self._free:
            may = self._may_displace
            if may is None or not self._make_room(whole, (v for v in self._behind(self._passed) if may(task, v))):
                return False
        target = self._plan.admit if task.residency is _QUEUED else self._plan.swap_in
        target.append(task.id)
        self._take(task, tokens, whole)
        return True

    def _chunk(self, task: Task) -> int:
        """How many tokens of a task this step may compute."""
        tokens = min(task.pending, self._budget)
        if tokens <= 1 or self._is_spare is None or not self._run or not self._is_spare(task):
            return tokens
        tokens = min(tokens, self._spare)
        self._spare -= tokens
        return tokens

    def _take(self, task: Task, tokens: int, kv: int) -> None:
        self._run[task.id] = tokens
        self._free -= kv
        self._budget -= tokens
        self._slots -= 1

    def _make_room(self, need: int, candidates: Iterator[Task]) -> bool:
        """Swap out candidates, the first ones first, until `need` tokens of KV are free.

        Nobody is swapped out when that would still not be enough.
        """
        if need <= self._free:
            return True
        victims: list[Task] = []
        gain = 0
        for victim in candidates if self._view.can_swap else ():
            victims.append(victim)
            gain += self._view.kv_held(victim) + self._planned(victim)
            if need <= self._free + gain:
                for gone in victims:
                    self._displace(gone)
                return True
        return False

    def _behind(self, place: int) -> Iterator[Task]:
        """Residents from a place in the ranking on, the last first."""
        for task in reversed(self._idle):
            if task.id not in self._gone:
                yield task
        for number in range(len(self._residents) - 1, place - 1, -1):
            if self._residents[number].id not in self._gone:
                yield self._residents[number]

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


def anyone(newcomer: Task, victim: Task) -> bool:
    """For `may_displace`: whoever ranks behind."""
    return True
