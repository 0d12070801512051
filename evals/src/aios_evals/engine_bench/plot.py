"""The result as a picture: a row of panels a setting, a column a workload, a group of bars a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aios_evals.engine_bench.case import WORKLOADS
from aios_evals.engine_bench.peers import ENGINES
from aios_kernel.errors import ConfigError

Row = Mapping[str, Any]
_SIZE = {"decode": "batch", "prefill": "length", "agents": "batch"}
_SETTING = ("model", "dtype", "threads")
_COLOURS = {
    "generate": "#9aa0a6",
    "transformers_cb": "#c58af9",
    "llamacpp": "#fbbc04",
    "vllm": "#4285f4",
    "torch": "#188038",
}


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write tokens per CPU-second of every row as a PNG. Raises ConfigError without matplotlib, or without rows."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib", fix="pip install 'aios-evals[plot]'") from error
    if not rows:
        raise ConfigError("nothing was measured, so there is nothing to draw", fix="see the notes above")
    kinds = list(dict.fromkeys(tuple(row[key] for key in _SETTING) for row in rows))
    workloads = [workload for workload in WORKLOADS if any(row["workload"] == workload for row in rows)]
    figure = Figure(figsize=(4.2 * len(workloads), 2.9 * len(kinds) + 0.8), layout="constrained")
    panels = figure.subplots(len(kinds), len(workloads), squeeze=False)
    for line, kind in zip(panels, kinds, strict=True):
        for panel, workload in zip(line, workloads, strict=True):
            here = [row for row in rows if row["workload"] == workload and tuple(row[key] for key in _SETTING) == kind]
            _panel(panel, here, workload)
        line[0].set_ylabel("tokens per CPU-second")
    names = [engine.name for engine in ENGINES if any(row["engine"] == engine.name for row in rows)]
    patches = [panels[0][0].bar(0, 0, color=_COLOURS[name]) for name in names]
    figure.legend(patches, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")


def _panel(panel: Any, rows: Sequence[Row], workload: str) -> None:
    """Bars of one panel; an empty one is hidden."""
    if not rows:
        panel.set_axis_off()
        return
    model, dtype, threads = (rows[0][key] for key in _SETTING)
    panel.set_title(f"{workload} · {model} {dtype} · {threads} thread{'s' if threads > 1 else ''}")
    names = [engine.name for engine in ENGINES if any(row["engine"] == engine.name for row in rows)]
    sizes = sorted({row[_SIZE[workload]] for row in rows})
    width = 0.8 / len(names)
    for row in rows:
        place = sizes.index(row[_SIZE[workload]]) + (names.index(row["engine"]) - (len(names) - 1) / 2) * width
        bar = panel.bar(place, row["tokens_per_cpu_s"], width, color=_COLOURS[row["engine"]])
        panel.bar_label(bar, [f"{row['tokens_per_cpu_s']:,.0f}"], fontsize=6, padding=1)
    panel.set_xticks(range(len(sizes)), [f"{_SIZE[workload]} {size:,}" for size in sizes])
    panel.spines[["top", "right"]].set_visible(False)
