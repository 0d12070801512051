"""`aios bench isolation` with few rounds: the figures hang together."""

from __future__ import annotations

import pytest

from aios_evals.isolation_cost import run


def test_levels_are_measured() -> None:
    rows = run(3)
    levels = [(row["case"], row["level"]) for row in rows]
    assert levels[:2] == [("command", "subprocess.run"), ("command", "trusted")]
    assert ("function", "subprocess.run") in levels
    for row in rows:
        assert row["calls"] == 3
        assert 0 < row["best_ms"] <= row["median_ms"]
        assert row["cpu_ms"] > 0
        if row["level"] == "subprocess.run":
            assert row["over_median_ms"] == row["over_best_ms"] == row["over_cpu_ms"] == 0
        plain = next(other for other in rows if (other["case"], other["level"]) == (row["case"], "subprocess.run"))
        assert row["over_best_ms"] == pytest.approx(row["best_ms"] - plain["best_ms"])
