"""`python -m aios_evals gpu --tiny`: every section runs, on the CPU; and what becomes of one that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aios_evals.gpu import run as runner
from aios_evals.gpu.bench import Bench, Subject
from aios_evals.gpu.ceilings import Ceilings
from aios_evals.gpu.run import Asked, Section
from aios_evals.gpu.shapes import SHAPES, Facts
from aios_kernel.errors import ConfigError

LLAMA, QWEN, MIXTURE = SHAPES


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_section_runs_on_the_cpu(tmp_path: Path) -> None:
    data = os.environ.get("AIOS_DATA")
    command = [sys.executable, "-m", "aios_evals", "gpu", "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    made = json.loads((tmp_path / "gpu.json").read_text())
    rows: list[dict[str, Any]] = made["rows"]
    assert [row for row in rows if "error" in row] == []
    assert done.returncode == 0, done.stderr[-2000:]
    assert {row["section"] for row in rows} == {"ceilings", *(section.name for section in runner.sections())}
    for name in ("exactness", "agreement", "prefill", "decode", "swap", "fork", "lora"):
        assert {row["model"] for row in rows if row["section"] == name} == {shape.name for shape in SHAPES}
    assert all(row["identical"] == 1.0 for row in rows if row["section"] in {"exactness", "fork"})
    assert all(row["agreeing_tokens"] == 1.0 for row in rows if row["section"] == "agreement")
    engines = [row["engine"] for row in rows if row["section"] in {"peers", "agents"}]
    assert engines == ["generate", "transformers_cb", "engine", "kernel_fifo", "kernel_program"]
    told = [row for row in rows if row["section"] == "sessions"]
    assert [row.get("engine") for row in told] == (["kernel_fifo", "kernel_program"] if data else [None])
    assert all(0 < row["efficiency"] <= 1 for row in rows if row["section"] in {"agents", "peers"})
    assert (tmp_path / "gpu.png").stat().st_size > 10_000
    assert "bandwidth_share" in (tmp_path / "gpu.txt").read_text()
    assert any("no GPU was measured" in note for note in made["notes"])


def test_a_section_that_fails_is_a_row_and_the_rest_goes_on(monkeypatch: Any, tmp_path: Path) -> None:
    def broken(_subject: Subject) -> Iterator[dict[str, Any]]:
        yield {"fine": 1}
        raise torch.OutOfMemoryError("no memory")

    def whole(_subject: Subject) -> Iterator[dict[str, Any]]:
        yield {"fine": 2}

    sections = (Section("broken", 1, broken), Section("whole", 1, whole, first_only=True))
    monkeypatch.setattr(runner, "sections", lambda: sections)
    assert runner.run(Asked(tmp_path, device="cpu", tiny=True)) == 3
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [(row["section"], row.get("error", row.get("fine"))) for row in rows[1:4]] == [
        ("broken", 1), ("broken", "OutOfMemoryError: no memory"), ("whole", 2),
    ]  # fmt: skip
    assert rows[0]["matmul_tflop_per_s"] > 0


def test_nothing_begins_when_the_time_is_up(tmp_path: Path) -> None:
    assert runner.run(Asked(tmp_path, budget_s=0.0, device="cpu", tiny=True, sections=["decode"])) == 4
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert all("the time of the whole run was up" in row["error"] for row in rows)


def test_a_run_that_hangs_is_ended_and_what_it_has_is_written(tmp_path: Path) -> None:
    hanging = (
        "import time; from pathlib import Path; from aios_evals.gpu import run\n"
        "run._GRACE_S = 0.0\n"
        "run.sections = lambda: (run.Section('endless', 1, lambda subject: iter([{'n': time.sleep(60)}])),)\n"
        f"run.run(run.Asked(Path({str(tmp_path)!r}), budget_s=3.0, device='cpu', tiny=True))"
    )
    assert subprocess.run([sys.executable, "-c", hanging], capture_output=True, timeout=50).returncode == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert rows[0]["section"] == "ceilings"
    assert "did not end in time" in rows[-1]["error"]


def test_without_ceilings_there_are_no_shares() -> None:
    bench = Bench(torch.device("cpu"), True, None, time.monotonic() + 9)
    with pytest.raises(RuntimeError, match="ceilings"):
        bench.limits()


@pytest.mark.parametrize(("what", "name"), [("models", "gpt-9"), ("sections", "speed")])
def test_unknown_names_are_refused(tmp_path: Path, what: str, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        runner.run(Asked(tmp_path, device="cpu", tiny=True, **{what: [name]}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        runner.run(Asked(tmp_path, device="cuda"))


@pytest.mark.parametrize(
    ("shape", "billions", "kv"), [(LLAMA, 8.03, 131_072), (QWEN, 7.62, 57_344), (MIXTURE, 30.5, 98_304)]
)
def test_the_shapes_are_the_published_ones(shape: Any, billions: float, kv: int) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(shape.config(tiny=False), dtype=torch.bfloat16)
    facts = Facts.of(model)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, abs=0.05)
    assert facts.kv_bytes == kv


def test_what_a_step_must_read_and_compute() -> None:
    dense = Facts(1000, 100, 0, 0, 0, layers=2, heads=4, kv_heads=2, head_dim=8, element_bytes=2)
    assert dense.kv_bytes == 2 * 2 * 2 * 8 * 2
    assert dense.decode_bytes(3, 10) == 2 * 1100 + 30 * dense.kv_bytes
    assert dense.prefill_flops(10) == 2 * 1000 * 10 + 2 * 100 + 2 * 2 * 4 * 8 * 100
    mixed = Facts(1000, 100, 800, 8, 2, layers=2, heads=4, kv_heads=2, head_dim=8, element_bytes=2)
    assert mixed.active == 1200
    assert mixed.decode_bytes(1, 0) == 2 * (1100 + 200)
    assert mixed.decode_bytes(2, 0) == 2 * (1100 + 800 * (1 - 0.75**2))


def test_the_bound_is_the_links_own() -> None:
    gpu = Ceilings(1e12, 2e9, 3e9, 4e9).gpu()
    assert (gpu.flops, gpu.bytes_per_s, gpu.link_bytes_per_s) == (1e12, 2e9, 3e9)
