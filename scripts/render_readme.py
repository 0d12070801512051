"""Write the README's figures from the committed results; with `--check` only say whether they agree."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "benchmarks"
BEGIN = "<!-- figures: scripts/render_readme.py writes this part from docs/benchmarks/ -->\n"
END = "<!-- end of figures -->"
MODES = {
    "generate_lock": "`generate` behind a lock",
    "kernel_fifo": "kernel, fifo",
    "kernel_round_robin": "kernel, round robin",
}

ENGINES = {
    "torch": "ours",
    "vllm": "vLLM",
    "llamacpp": "llama.cpp",
    "transformers_cb": "transformers batching",
    "generate": "`generate`",
}


def figures() -> str:
    """The Markdown of all results."""
    return "\n".join([_speedup(_load("speedup")), _engine(_load("engine")), _syscalls(_load("syscalls"))])


def _load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _where(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    chip = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}, no GPU"
    return f"{chip}; torch {versions.get('torch', '-')}; {result['time'][:10]}; `{result['command']}`"


def _speedup(result: Mapping[str, Any]) -> str:
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    cells = [
        (row["framework"], row["workload"], row["agents"], MODES.get(row["mode"], row["mode"]),
         f"{row['makespan_s']:.1f}", f"{row['mean_s']:.1f}", f"{row['tokens_computed']:,}", f"{row['ratio']:.1f}x",
         "" if row["identical"] is None else f"{row['identical']:.4f}")
        for row in rows
    ]  # fmt: skip
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
        f"{_table(head, cells)}\n{_where(result)}.\n"
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


def main() -> int:
    """Render, or check."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rendered = f"{before}{BEGIN}\n{figures()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if rendered != text:
            sys.stdout.write(
                "the README's figures are not those of docs/benchmarks/; fix: python scripts/render_readme.py\n"
            )
        return int(rendered != text)
    README.write_text(rendered)
    return 0


if __name__ == "__main__":
    sys.exit(main())
