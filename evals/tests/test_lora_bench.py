"""`aios bench lora` on a tiny model: both engines answer the same, every case has its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_evals.lora_bench import run as bench
from aios_evals.lora_bench.run import Asked
from aios_kernel.errors import EngineError

SMALL = Asked(
    model="1m", batch=4, rank=2, loras=(0, 3), registered=7, active=5, prompt=20, new=6, rounds=1, compile=False
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_engines_run_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {}
    ask = bench._ask

    def keep(engine: str, task: bench.Task) -> bench.Answer:
        answers[engine] = ask(engine, task)
        return answers[engine]

    monkeypatch.setattr(bench, "_ask", keep)
    rows, versions, notes = bench.run(SMALL, tmp_path)
    assert {"torch", "peft"} <= versions.keys()
    assert len(notes) == 2
    found = [(row["engine"], row["loras"], row["registered"], row["requests"]) for row in rows]
    assert found == [("torch", 0, 7, 4), ("torch", 3, 7, 4), ("torch", 5, 7, 10), ("peft", 0, 3, 4), ("peft", 3, 3, 4)]
    for row in rows:
        assert row["tokens_per_cpu_s"] > 0
        assert row["ratio_to_base"] > 0
        assert (row["step_ms"] is None) == (row["engine"] == "peft")
    ours, theirs = ({found.case.loras: found.answers for found in answers[name].rounds} for name in ("torch", "peft"))
    assert ours[0] == theirs[0]
    assert ours[3] == theirs[3]
    assert ours[3] != ours[0]


def test_an_engine_that_cannot_run_says_why(tmp_path: Path) -> None:
    asked = Asked(engines=("torch",), model="1m", dtypes=("float99",), loras=(1,), active=0, registered=1)
    with pytest.raises(EngineError, match="float99") as caught:
        bench.run(asked, tmp_path)
    assert "fix:" in str(caught.value)
