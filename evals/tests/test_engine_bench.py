"""`aios bench engine`: cases, the workers' protocol, exactness, and what it does when a peer is missing or fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from aios_evals.engine_bench.case import Case
from aios_evals.engine_bench.exact import identical
from aios_evals.engine_bench.measure import ROUNDS, compare, measure
from aios_evals.engine_bench.peers import ENGINES, Engine
from aios_evals.engine_bench.plan import Asked, settings
from aios_evals.engine_bench.worker import Worker, WorkerFailed
from aios_kernel.errors import ConfigError

AIOS = str(Path(sys.executable).parent / "aios")
ROOT = Path(__file__).resolve().parents[2]
COUNTER = """
import os
from aios_evals.engine_bench.workers.loop import serve

class Counter:
    "Answers with the tokens after the prompt's last one."
    versions = {"counter": "1"}
    def generate(self, prompts, n_tokens):
        print("noise on standard output")
        if prompts[0][-1] == 666:
            raise ValueError("this prompt is cursed")
        if prompts[0][-1] == 667:
            os._exit(3)
        short = prompts[0][-1] == 668
        return [[prompt[-1] + step for step in range(1, n_tokens + 1 - short)] for prompt in prompts]
    def margin(self, tokens):
        return 1.0
    def close(self):
        pass

serve(lambda model, dtype, threads: Counter())
"""


@pytest.fixture
def counter(tmp_path: Path) -> Generator[Worker, None, None]:
    script = tmp_path / "counter.py"
    script.write_text(COUNTER)
    with Worker("counter", [sys.executable, str(script)], threads=1) as worker:
        assert worker.load(tmp_path, "float32") == {"counter": "1"}
        yield worker


def test_a_conversation_is_its_prompts_and_answers(counter: Worker) -> None:
    done = counter.run([[[1, 5], [10]], [[20], [30, 40]]], 2)
    assert done["histories"] == [[1, 5, 6, 7, 20, 21, 22], [10, 11, 12, 30, 40, 41, 42]]
    assert done["cpu_s"] >= 0
    assert done["wall_s"] > 0


def test_an_engine_that_fails_says_why_and_goes_on(counter: Worker) -> None:
    with pytest.raises(WorkerFailed, match="counter: ValueError: this prompt is cursed"):
        counter.run([[[666]]], 1)
    with pytest.raises(WorkerFailed, match="did not generate 3 tokens"):
        counter.run([[[668]]], 3)
    assert counter.run([[[1]]], 1)["histories"] == [[1, 2]]


def test_an_engine_that_ends_is_noticed(counter: Worker) -> None:
    with pytest.raises(WorkerFailed, match="counter ended"):
        counter.run([[[667]]], 1)
    with pytest.raises(WorkerFailed, match="counter ended"):
        counter.run([[[1]]], 1)


def test_an_engine_that_cannot_start_gives_its_last_words() -> None:
    with (
        Worker("broken", [sys.executable, "-c", "raise SystemExit('no such engine here')"], threads=1) as worker,
        pytest.raises(WorkerFailed, match="no such engine here"),
    ):
        worker.load(Path(), "float32")


def test_every_engine_is_measured_in_every_round_and_who_fails_is_left_out(counter: Worker) -> None:
    class Cursed(Worker):
        def run(self, turns: Any, n_tokens: int) -> dict[str, Any]:
            return super().run([[[666]]], n_tokens)

    failures: list[str] = []
    with Cursed("cursed", counter.command, threads=1) as cursed:
        cursed.load(Path(), "float32")
        workers = {
            "generate": (Engine("generate", "counter", sample={"decode": 2}), counter),
            "cursed": (Engine("cursed", "counter"), cursed),
            "torch": (Engine("torch", "counter"), counter),
        }
        found = measure(Case.decode(8), workers, 100, lambda name, error: failures.append(f"{name}: {error}"))
    assert failures == ["cursed: cursed: ValueError: this prompt is cursed"]
    assert {name: (one.conversations, one.runs) for name, one in found.items()} == {
        "generate": (2, ROUNDS),
        "torch": (8, ROUNDS),
    }
    compare(found, counter)
    assert [one.identical for one in found.values()] == [1.0, 1.0]


def test_identical_allows_a_tie_and_nothing_else() -> None:
    oracle = [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    asked: list[list[int]] = []

    def margin(tokens: Any) -> float:
        asked.append(list(tokens))
        return 1e-4 if tokens == [4, 5] else 0.5

    assert identical([[1, 2, 3], [1, 9, 3], [4, 5, 7], [8, 8, 8]], oracle, margin) == pytest.approx(2 / 3)
    assert asked == [[1], [4, 5]]


def test_agents_share_their_system_prompt_and_nothing_else() -> None:
    turns = Case.agents().turns(1000, 1, 16)
    assert [len(turn[0]) for turn in turns] == [288, 32, 32, 32, 32, 32]
    assert len({tuple(tokens[:256]) for tokens in turns[0]}) == 1
    assert len({tuple(tokens[256:]) for tokens in turns[0]}) == 16
    assert Case.agents().turns(1000, 2, 1)[0][0][:256] != turns[0][0][:256]  # no prefix cache knows the next round
    assert Case.agents().turns(1000, 1, 2) == [turn[:2] for turn in turns]
    assert Case.decode(8).turns(1000, 1, 1) != Case.decode(32).turns(1000, 1, 1)  # nor from a smaller case
    assert (Case.agents().length, Case.agents().counted(16)) == (288 + 5 * (32 + 16), 16 * 6 * 16)


def test_generated_tokens_count_but_for_prefill() -> None:
    assert Case.decode(8).counted(8) == 8 * 48
    assert Case.prefill(4096).counted(1) == 4096
    assert len(Case.prefill(4096).turns(512, 0, 1)[0][0]) == 4096


def test_the_default_is_cut_and_what_is_asked_for_is_not() -> None:
    default = [one for one in settings(Asked()) if one.threads == 1]
    assert [(one.model, one.dtype) for one in default] == [("34m", "float32"), ("34m", "bfloat16")]
    assert [Case.decode(128) in one.cases for one in default] == [False, True]
    asked = settings(Asked(engines=["torch"], dtypes=["float32"], threads=[1, 2], workloads=["decode"], batches=[128]))
    assert [(one.threads, one.engines, one.cases) for one in asked] == [
        (1, ("torch",), {Case.decode(128): ("torch",)}),
        (2, ("torch",), {Case.decode(128): ("torch",)}),
    ]
    assert {one.model for one in settings(Asked(full=True))} == {"1m", "34m", "500m"}


def bench(home: Path, *arguments: str) -> dict[str, Any]:
    """Run the command as a user does; its JSON."""
    environment = os.environ | {"AIOS_HOME": str(home)}
    command = [AIOS, "bench", "engine", "--json", "--model", "1m", "--threads", "1", "--dtype", "float32", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_command_measures_ours_and_generate_and_names_the_missing_peer(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chosen = [part for name in ("torch", "generate", "vllm") for part in ("--engine", name)]
    kinds = ["--workload", "decode", "--workload", "agents", "--batch", "3"]
    made = bench(tmp_path, *chosen, *kinds, "--peers", str(tmp_path), "--plot", str(tmp_path / "plot.png"))
    assert [(row["engine"], row["workload"], row["batch"], row["length"]) for row in made["rows"]] == [
        ("generate", "decode", 3, 96),
        ("torch", "decode", 3, 96),
        ("generate", "agents", 16, 528),
        ("torch", "agents", 16, 528),
    ]
    for row in made["rows"]:
        assert (row["threads"], row["dtype"], row["model"], row["identical"]) == (1, "float32", "1m", 1.0)
        assert row["tokens_per_cpu_s"] > 0
        assert row["tokens_per_s"] > 0
        assert row["ratio_to_generate"] == 1.0 if row["engine"] == "generate" else row["ratio_to_generate"] > 0
    assert any("vllm is not installed" in note and "make bench-peers" in note for note in made["notes"])
    assert "transformers" in made["versions"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_bench_gives_what_it_has(tmp_path: Path) -> None:
    command = [AIOS, "bench", "engine", "--json", "--model", "1m", "--threads", "1", "--engine", "generate"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"AIOS_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job, as a CI may be, ignores ctrl-C, and so does what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert any("tokens per CPU-second" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    made = json.loads(process.communicate(timeout=60)[0])
    assert made["rows"][0]["engine"] == "generate"
    assert "interrupted: later rows are missing" in made["notes"]


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from aios_evals.engine_bench.plot import draw

    with pytest.raises(ConfigError, match="nothing was measured"):
        draw([], tmp_path / "plot.png", "")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["vllm", "llamacpp", "transformers_cb"])
def test_a_peer_says_what_generate_says(name: str, tmp_path: Path) -> None:
    engine = next(engine for engine in ENGINES if engine.name == name)
    if engine.command(ROOT) is None:
        pytest.skip(f"{name} is not installed: make bench-peers")
    chosen = ["--engine", "generate", "--engine", name, "--peers", str(ROOT), "--batch", "4"]
    made = bench(tmp_path, *chosen)
    rows = [row for row in made["rows"] if row["engine"] == name]
    assert [row["workload"] for row in rows] == ["decode", "prefill", "prefill", "prefill", "agents"], made["notes"]
    # llama.cpp rounds differently (largest difference of logits 0.004), so that some of its answers part ways.
    assert sum(row["identical"] for row in rows) / len(rows) >= (0.5 if name == "llamacpp" else 1.0), rows
