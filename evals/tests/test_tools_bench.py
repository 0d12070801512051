"""The tools bench measures every case that this machine has, and says what it has not."""

from __future__ import annotations

from aios_evals.tools_bench import run


def test_all_cases_are_measured() -> None:
    rows, notes = run(calls=5)
    cases = [row["case"] for row in rows]
    assert cases[:4] == [
        "in the agent's process (begin, end)", "hosted, idempotent", "hosted, effect recorded",
        "hosted, second call with its key",
    ]  # fmt: skip
    assert cases[-1] == "job: submit to result"
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in rows)
    commands = [case for case in cases if case.startswith("command, ")]
    assert commands or notes, "what is missing is said"
    turn = next(row for row in rows if row["case"].startswith("turn of 8"))
    assert turn["p50_us"] < 8 * 50_000, "side by side"
