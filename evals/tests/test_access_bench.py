"""The bench of access, small: what is decided in each case. Its times are not looked at."""

from __future__ import annotations

from aios_evals import access_bench


def test_every_case_decides_what_it_is_there_for() -> None:
    rows = access_bench.run(decisions=50, shapes=[(20, 20)])
    assert {row["case"]: row["effect"] for row in rows} == {
        "first": "allow",
        "own space": "allow",
        "foreign space": "deny",
        "rule": "allow",
        "pattern": "allow",
        "question": "ask",
        "grant": "allow",
        "three parents": "allow",
        "rule, Cedar": "allow",
    }
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in rows)
