"""`aios bench compare A B`: the same rows of two results side by side, with the change of every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
_BETTER_HIGHER = ("per_s", "per_cpu_s", "ratio", "identical", "hit_rate", "efficiency", "jain", "tokens_cached")


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a figure that both results have: the keys, before, after, and the change in percent.

    `worse_percent` is positive when the figure got worse: times and ratios to a floor up, rates down.
    Raises ValueError for results of different benches.
    """
    if before["bench"] != after["bench"]:
        raise ValueError(f"cannot compare {before['bench']} with {after['bench']}")
    earlier = {_key(row): row for row in before["rows"]}
    found: list[dict[str, Any]] = []
    for row in after["rows"]:
        old = earlier.get(_key(row))
        if old is not None:
            found.extend(_changes(old, row))
    return found


def worst(changes: Sequence[Row]) -> float:
    """The largest worsening, in percent; 0 when nothing got worse."""
    return max((change["worse_percent"] for change in changes), default=0.0)


def _key(row: Row) -> tuple[tuple[str, Any], ...]:
    """What identifies a row: its texts, and the integers that are parameters (`clients`, `agents`, ...)."""
    parameters = {"clients", "agents", "batch", "length", "threads", "programs", "pool", "host", "sequences"}
    return tuple((name, value) for name, value in sorted(row.items()) if isinstance(value, str) or name in parameters)


def _changes(old: Row, new: Row) -> list[dict[str, Any]]:
    names = dict(_key(new))
    rows: list[dict[str, Any]] = []
    for name, value in new.items():
        was = old.get(name)
        if name in names or name == "runs" or not _is_figure(value) or not _is_figure(was):
            continue
        change = 100.0 * (value - was) / was if was else 0.0
        better_higher = any(name.endswith(suffix) for suffix in _BETTER_HIGHER) and name != "echo_ratio"
        rows.append(
            names
            | {"figure": name, "before": was, "after": value, "worse_percent": -change if better_higher else change}
        )
    return rows


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
