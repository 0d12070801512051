"""The result as a picture: what share of the device's limits is reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aios_kernel.errors import ConfigError

Row = dict[str, Any]
_COLOURS = ("#188038", "#4285f4", "#c58af9")
_PANELS: tuple[tuple[str, str, float, Callable[[Row], str]], ...] = (
    ("prefill", "flop_share", 0.5, lambda row: f"{row['tokens']:,}"),
    ("decode", "bandwidth_share", 0.6, lambda row: f"batch {row['batch']}"),
    ("swap", "efficiency", 0.8, lambda row: f"{row['tokens']:,}"),
    ("agents", "efficiency", 0.5, lambda row: row["engine"].removeprefix("kernel_")),
    ("peers", "efficiency", 0.5, lambda row: row["engine"]),
    ("sessions", "efficiency", 0.5, lambda row: row["engine"].removeprefix("kernel_")),
)
"""Section, what is drawn, the goal, and the name of a bar."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the shares of all models as a PNG. Raises ConfigError without matplotlib, or without anything to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a picture needs matplotlib", fix="pip install 'aios-evals[plot]'") from error
    panels = [panel for panel in _PANELS if _of(rows, panel[0], panel[1])]
    if not panels:
        raise ConfigError("nothing was measured that could be drawn", fix="see the rows")
    models = list(dict.fromkeys(row["model"] for row in rows if row["model"]))
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    for axes, (section, value, goal, name) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        found = _of(rows, section, value)
        labels = list(dict.fromkeys(name(row) for row in found))
        width = 0.8 / len(models)
        for row in found:
            at = labels.index(name(row)) + (models.index(row["model"]) - (len(models) - 1) / 2) * width
            axes.bar(at, row[value], width, color=_COLOURS[models.index(row["model"]) % len(_COLOURS)])
        axes.axhline(goal, color="#9aa0a6", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.set_title(f"{section}: {value.replace('_', ' ')}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    patches: list[Any] = [figure.axes[0].bar(0, 0, color=colour) for colour in _COLOURS[: len(models)]]
    figure.legend(patches, models, loc="outside lower center", ncols=len(models), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, format="png")


def _of(rows: Sequence[Row], section: str, value: str) -> list[Row]:
    return [row for row in rows if row["section"] == section and row.get(value) is not None]
