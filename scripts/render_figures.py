"""Write the documents' figures from the committed results; with `--check` only say whether they agree."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/scheduling.md", "docs/loras.md")
RESULTS = ROOT / "docs" / "benchmarks"
PART = re.compile(
    r"(<!-- figures: (\w+), written by scripts/render_figures.py -->\n).*?(<!-- end of figures -->)", re.DOTALL
)
MODES = {
    "generate_lock": "`generate` behind a lock",
    "kernel_fifo": "kernel, fifo",
    "kernel_round_robin": "kernel, round robin",
    "server": "vLLM, straight",
}

ENGINES = {
    "torch": "ours",
    "vllm": "vLLM",
    "llamacpp": "llama.cpp",
    "transformers_cb": "transformers batching",
    "generate": "`generate`",
}


def _overview() -> str:
    speedups = [_load(path.stem) for path in sorted(RESULTS.glob("speedup*.json"))]
    return "\n".join([_speedup(*speedups), _engine(_load("engine")), _syscalls(_load("syscalls"))])


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _where(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    chip = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}, no GPU"
    return f"{chip}; torch {versions.get('torch', '-')}; {result['time'][:10]}; `{result['command']}`"


def _speedup(*results: Mapping[str, Any]) -> str:
    cells = [
        (row["framework"], row["workload"], row["agents"], MODES[row["mode"]],
         f"{row['makespan_s']:.1f}", f"{row['mean_s']:.1f}", f"{row['tokens_computed']:,}", f"{row['ratio']:.1f}x",
         "" if row["identical"] is None else f"{row['identical']:.4f}")
        for result in results for row in result["rows"]
    ]  # fmt: skip
    measured = "; ".join(dict.fromkeys(map(_where, results)))
    head = (
        "framework",
        "work",
        "agents",
        "served by",
        "makespan s",
        "mean s",
        "tokens computed",
        "speedup",
        "same choices",
    )
    return (
        "The same agents on recorded work (`tau`: tau-bench airline; `mint`: MINT), a 34 M model, every recorded\n"
        "token computed:\n\n"
        f"{_table(head, cells)}\n{measured}.\n"
        "*Same choices*: the share of positions at which the model's own greedy token is that of `generate`,\n"
        "ties aside.\n"
    )


def _engine(result: Mapping[str, Any]) -> str:
    """Ours beside the peers, a line a case: the engine alone, without the kernel around it."""
    rates: dict[tuple[str, ...], dict[str, float]] = {}
    for row in result["rows"]:
        case = (row["workload"], str(row["batch"]), f"{row['length']:,}", row["dtype"], str(row["threads"]))
        rates.setdefault(case, {})[row["engine"]] = row["tokens_per_cpu_s"]
    engines = [name for name in ENGINES if any(name in found for found in rates.values())]
    cells = [
        (*case, *(f"{found[name]:,.0f}" if name in found else "" for name in engines),
         f"{found['torch'] / found['vllm']:.2f}x" if {"torch", "vllm"} <= found.keys() else "")
        for case, found in rates.items()
    ]  # fmt: skip
    head = ("work", "sequences", "tokens", "dtype", "threads", *(ENGINES[name] for name in engines), "ours over vLLM")
    title = "The engine alone beside its peers, tokens per CPU-second on the 34 M model (random weights):"
    return f"\n{title}\n\n{_table(head, cells)}\n{_where(result)}.\n"


def _syscalls(result: Mapping[str, Any]) -> str:
    cells = [
        (row["clients"], f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}", f"{row['per_s']:,.0f}", f"{row['cpu_us']:.0f}",
         f"{row['echo_ratio']:.1f}x")
        for row in result["rows"]
    ]  # fmt: skip
    head = ("clients", "p50 us", "p99 us", "calls/s", "CPU us a call", "CPU over a bare echo")
    title = "An LLM syscall when the model costs nothing (fake engine, over the socket):"
    return f"\n{title}\n\n{_table(head, cells)}\n{_where(result)}.\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def _schedule(result: Mapping[str, Any]) -> str:
    """The simulator's rows; times as ratios over the engine alone in the same cell."""
    alone = {(row["programs"], row["host"]): row for row in result["rows"] if row["policy"] == "engine_lru"}
    cells: list[Sequence[object]] = []
    for row in result["rows"]:
        base = alone[row["programs"], row["host"]]
        ratios = (f"{base[key] / row[key]:.2f}x" for key in ("mean_s", "p95_s", "makespan_s"))
        host = f"{row['host'] / 1e6:g}M" if row["host"] else "none"
        shares = (*(f"{row[key]:.0f}" for key in ("wait_mean_s", "turnaround_mean_s")),
                  *(f"{row[key]:.2f}" for key in ("idle", "jain", "efficiency")))  # fmt: skip
        found = (f"{row['hit_rate']:.3f}", f"{row['amplification']:.2f}")
        cells.append((row["programs"], host, row["policy"], *found, *ratios, *shares))
    head = ("programs", "host", "policy", "hit rate", "amplification", "mean", "p95", "makespan")
    return f"{_table((*head, 'wait s', 'turnaround s', 'idle', 'Jain', 'efficiency'), cells)}\n`{result['command']}`.\n"


def _contention(result: Mapping[str, Any]) -> str:
    cells = [
        (f"{row['working_set_over_pool']:.1f}", row["programs"], row["policy"], f"{row['mean_s']:.1f}",
         f"{row['p95_s']:.1f}", f"{row['makespan_s']:.1f}", f"{row['amplification']:.2f}",
         "" if row["ratio_to_vllm"] is None else f"{row['ratio_to_vllm']:.2f}x")
        for row in result["rows"]
    ]  # fmt: skip
    head = (
        "working set over pool",
        "programs",
        "policy",
        "mean s",
        "p95 s",
        "makespan s",
        "amplification",
        "over vLLM",
    )
    return f"{_table(head, cells)}\n{_where(result)}.\n"


def _lora(result: Mapping[str, Any]) -> str:
    """Throughput with adapters over that without, of pairs of runs."""
    names = {"torch": "ours", "peft": "PEFT"}
    cells = [
        (names[row["engine"]], row["dtype"], row["loras"], row["registered"], row["rank"],
         f"{row['tokens_per_cpu_s']:,.0f}", f"{row['ratio_to_base']:.2f}x", f"{row['time_ratio']:.2f}x",
         "" if row["step_ratio"] is None else f"{row['step_ratio']:.2f}x")
        for row in result["rows"]
    ]  # fmt: skip
    head = (
        "engine",
        "dtype",
        "adapters in use",
        "loaded",
        "rank",
        "tokens per CPU-second",
        "over base",
        "time",
        "decode step",
    )
    return f"{_table(head, cells)}\n{_where(result)}.\n"


PARTS: dict[str, Callable[[], str]] = {
    "overview": _overview,
    "schedule": lambda: _schedule(_load("schedule")),
    "schedule_last": lambda: _schedule(_load("schedule-last")),
    "schedule_open": lambda: _schedule(_load("schedule-open")),
    "schedule_qwen": lambda: _schedule(_load("schedule-qwen")),
    "ablation": lambda: _schedule(_load("schedule-ablation")),
    "contention": lambda: _contention(_load("contention")),
    "lora": lambda: _lora(_load("lora")),
}


def main() -> int:
    """Render, or check."""
    stale = 0
    for path in (ROOT / name for name in DOCUMENTS):
        text = path.read_text()
        rendered = PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", text)
        if rendered != text and "--check" in sys.argv[1:]:
            sys.stdout.write(
                f"{path.name} has not the figures of docs/benchmarks/; fix: python scripts/render_figures.py\n"
            )
            stale = 1
        elif rendered != text:
            path.write_text(rendered)
    return stale


if __name__ == "__main__":
    sys.exit(main())
