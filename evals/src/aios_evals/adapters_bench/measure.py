"""Measuring one framework: the same call inside a scope and outside of every scope, one after the other.

Outside, a stub stands in for the model client and answers at once, so that the difference is what is added: the
adapter's translation both ways and the whole road through the kernel, whose engine costs nothing. Standard library
only: this also runs in environments that have no more than an adapter and its framework.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import aios_adapters as aios

Call = Callable[[], Any]
"""A call of the framework; what it gives is awaited if it can be."""
Kind = Literal["llm", "tool"]
_WARM = 30
_OUTSIDE_CALLS = 2_000
_REPEATS = 40


@dataclass(frozen=True, slots=True)
class Case:
    """One call of a framework.

    Attributes:
        kind: of the model, or of a tool.
        road: `sync` or `async`.
        inside: made inside a scope.
        bare: the same, made outside, its model a stub.
        check: what either must give.
    """

    kind: Kind
    road: Literal["sync", "async"]
    inside: Call
    bare: Call
    check: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Hooked:
    """A method that an adapter has patched, to be called outside of every scope; gives nothing that is awaited."""

    name: str
    patched: Callable[[], Any]
    original: Callable[[], Any]


async def measure(case: Case, calls: int) -> dict[str, Any]:
    """A row of latencies in microseconds: bare, inside, and their difference at p50 and p99."""
    bare: list[float] = []
    inside: list[float] = []
    with aios.running("bench") as scope:
        assert scope is not None
        for number in range(calls + _WARM):
            with scope.on():
                took = await _timed(case, case.inside)
            # Nothing of ours is on here, as if there were no decorator.
            other = await _outside(case)
            if number >= _WARM:
                inside.append(took)
                bare.append(other)
    return {
        "call": case.kind,
        "road": case.road,
        "calls": calls,
        "bare_p50_us": _quantile_us(bare, 0.5),
        "bare_p99_us": _quantile_us(bare, 0.99),
        "inside_p50_us": _quantile_us(inside, 0.5),
        "inside_p99_us": _quantile_us(inside, 0.99),
        "added_p50_us": round(_quantile_us(inside, 0.5) - _quantile_us(bare, 0.5), 1),
        "added_p99_us": round(_quantile_us(inside, 0.99) - _quantile_us(bare, 0.99), 1),
    }


async def _outside(case: Case) -> float:
    from aios_adapters._scope import suspended

    with suspended():
        return await _timed(case, case.bare)


async def _timed(case: Case, call: Call) -> float:
    began = time.perf_counter()
    result = call()
    if inspect.isawaitable(result):
        awaited: Awaitable[Any] = result
        result = await awaited
    took = time.perf_counter() - began
    assert case.check(result), result
    return took


def outside(hooked: Hooked) -> dict[str, Any]:
    """What a patched method costs more than its original where no scope is on: the least of many rounds of each."""
    rounds = [(_loop_s(hooked.patched), _loop_s(hooked.original)) for _ in range(_REPEATS)]
    with_patch, without = (min(times) for times in zip(*rounds, strict=True))
    return {
        "call": "outside",
        "road": hooked.name,
        "calls": _OUTSIDE_CALLS,
        "added_p50_us": round((with_patch - without) / _OUTSIDE_CALLS * 1e6, 3),
    }


def _loop_s(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    for _ in range(_OUTSIDE_CALLS):
        call()
    return time.perf_counter() - began


def _quantile_us(latencies: list[float], share: float) -> float:
    ordered = sorted(latencies)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6, 1)
