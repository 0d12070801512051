"""What a step of the program policy computes: who of the calls that are in, and how much of each."""

from __future__ import annotations

from collections.abc import Sequence

from aios_kernel.scheduler.program_queue import CLASSES
from aios_kernel.scheduler.protocol import Task, View

_OUTWEIGHED = 4
"""Calls that decode, for each that gets through its prompt in the same step, so that they may wait for it."""


def fill(view: View, runs: Sequence[Task], chunk: int, reserve: int) -> list[tuple[int, int]]:
    """Decoding calls, oldest first, then chunks of prefill: better classes first, then what is soonest through.

    When little is free, only the first one goes on, so that what is left is enough for somebody to end.

    Args:
        view: the pool.
        runs: calls that have their context in it, or get one by this plan.
        chunk: prefill tokens beside decoding. What a step may compute while it reads the weights costs hardly anything.
            More only to bring many prompts to their end at once (`_many`).
        reserve: tokens of the pool kept for one call to end in.
    """
    run: list[tuple[int, int]] = []
    budget, free = view.max_step_tokens, view.kv_free
    decoding = [task for task in runs if task.pending == 1 and task.generated]
    block, keep, slots = view.block_size, 0, view.max_batch
    for task in decoding:
        need = 0 if (task.length - 1) % block else block
        if budget and slots and (not need or free - need >= keep):
            run.append((task.id, 1))
            free -= need
            budget -= 1
            slots -= 1
            keep = reserve
    if len(decoding) == len(runs):
        return run
    prefilling = sorted((task for task in runs if task.pending > 1 or not task.generated), key=urgency)
    if decoding:
        budget = min(budget, max(chunk, _many(prefilling, budget, len(decoding) // _OUTWEIGHED)))
    for task in prefilling:
        tokens = min(task.pending, budget, view.kv_fits(task, max(0, free - reserve if run else free)))
        if tokens > 0 and len(run) < view.max_batch:
            run.append((task.id, tokens))
            free -= view.kv_need(task, tokens)
            budget -= tokens
    return run


def _many(prefilling: Sequence[Task], budget: int, least: int) -> int:
    """Tokens of the prompts that a step can bring to their end, if these are so many, and more than one; else 0.

    Cut into chunks they would be computed step after step for all the same, and calls that came together would begin,
    and end, one after the other.
    """
    ended = tokens = 0
    for task in prefilling:
        if tokens + task.pending > budget:
            break
        tokens += task.pending
        ended += 1
    return tokens if ended > 1 and ended >= least else 0


def urgency(task: Task) -> tuple[int, int]:
    """Order of prefills."""
    return (CLASSES[task.priority], task.pending)
