"""A kernel that serves for a while: a moment here, a minute in the slow suite, a million syscalls by `make soak`."""

from __future__ import annotations

import pytest

from aios_evals.reliability import soak


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("x"))  # short: the path of a socket has its limit


def test_a_moment_of_everything_has_no_errors() -> None:
    rows = soak.run(1_500)
    assert [row["part"] for row in rows] == [*map(str, range(1, 11)), "all"]
    assert rows[-1]["syscalls"] == sum(row["syscalls"] for row in rows[:-1]) >= 1_500
    assert rows[-1]["errors"] == 0


@pytest.mark.slow
def test_a_minute_of_everything_leaves_nothing_behind() -> None:
    *_, whole = soak.run(1_000_000, seconds=60.0)
    assert whole["errors"] == 0
    assert whole["descriptors_grew"] == 0
    assert whole["threads_grew"] == 0
    assert whole["rss_mib"] < 400
