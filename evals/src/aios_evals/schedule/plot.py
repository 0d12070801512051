"""The comparison as pictures: completion, reuse against the number of programs, and who held the pool when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aios_evals.schedule.cells import Outcome
from aios_kernel.errors import ConfigError

_COLOURS = {
    "engine_lru": "#9aa0a6",
    "fifo": "#c58af9",
    "round_robin": "#f28b82",
    "priority": "#fbbc04",
    "fair": "#ff8bcb",
    "admission": "#4285f4",
    "program": "#188038",
    "oracle_eviction": "#5f6368",
    "oracle_admission": "#174ea6",
}
_PARTS = ("running calls", "parked", "prefix cache", "host memory")
_SHADES = ("#188038", "#81c995", "#dadce0", "#fbbc04")


def draw(outcomes: Sequence[Outcome], folder: Path, title: str, pool: int) -> list[Path]:
    """Write the three pictures as SVG; gives their paths. Raises ConfigError without matplotlib or outcomes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib", fix="pip install 'aios-evals[plot]'") from error
    if not outcomes:
        raise ConfigError("nothing was simulated, so there is nothing to draw", fix="aios bench schedule --help")
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "schedule-completion.svg": _completion(Figure, outcomes),
        "schedule-reuse.svg": _reuse(Figure, outcomes),
        "schedule-residency.svg": _residency(Figure, outcomes, pool),
    }
    for name, figure in made.items():
        figure.suptitle(title, fontsize=9)
        figure.savefig(folder / name, metadata={"Date": None})
    return [folder / name for name in made]


def _cells(outcomes: Sequence[Outcome]) -> list[tuple[int, int]]:
    return list(dict.fromkeys((each.row["programs"], each.row["host"]) for each in outcomes))


def _tokens(count: int) -> str:
    return f"{count / 1e6:g}M" if count else "no"


def _completion(figure_of: Any, outcomes: Sequence[Outcome]) -> Any:
    """One panel a cell: the share of programs that have ended, over time since their start."""
    cells = _cells(outcomes)
    columns = min(4, len(cells))
    lines = -(-len(cells) // columns)
    figure = figure_of(figsize=(3.4 * columns, 2.6 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, (programs, host) in zip(panels, cells, strict=False):
        for each in outcomes:
            if (each.row["programs"], each.row["host"]) == (programs, host):
                ended = sorted(each.completion_s)
                shares = [(n + 1) / len(ended) for n in range(len(ended))]
                panel.step([second / 3600 for second in ended], shares, where="post", **_line(each))
        panel.set_title(f"{programs} programs, {_tokens(host)} host", fontsize=9)
        panel.set_xlabel("hours")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(cells) :]:
        panel.set_axis_off()
    _legend(figure, panels[0])
    return figure


def _reuse(figure_of: Any, outcomes: Sequence[Outcome]) -> Any:
    """A row a measure, a column a host size: against the number of programs."""
    hosts = sorted({each.row["host"] for each in outcomes})
    figure = figure_of(figsize=(3.4 * len(hosts), 5.6), layout="constrained")
    panels = figure.subplots(2, len(hosts), squeeze=False)
    for line, key in zip(panels, ("hit_rate", "amplification"), strict=True):
        for panel, host in zip(line, hosts, strict=True):
            for policy in dict.fromkeys(each.row["policy"] for each in outcomes):
                found = [e for e in outcomes if e.row["policy"] == policy and e.row["host"] == host]
                found.sort(key=lambda each: each.row["programs"])
                counts = [each.row["programs"] for each in found]
                panel.plot(counts, [each.row[key] for each in found], marker="o", ms=3, **_line(found[0]))
            panel.set_title(f"{_tokens(host)} host", fontsize=9)
            panel.set_xscale("log", base=2)
            panel.set_xlabel("programs")
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel(key.replace("_", " "))
    for panel in panels[1]:
        panel.set_yscale("log")
    _legend(figure, panels[0][0])
    return figure


def _residency(figure_of: Any, outcomes: Sequence[Outcome], pool: int) -> Any:
    """Of the largest cell, a panel a policy: what holds the pool, stacked, and host memory above it."""
    cell = max(_cells(outcomes))
    found = [each for each in outcomes if (each.row["programs"], each.row["host"]) == cell]
    figure = figure_of(figsize=(9, 2.2 * len(found) + 0.6), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, sharex=True).flatten()
    for panel, each in zip(panels, found, strict=True):
        points = each.timeline[:: max(1, len(each.timeline) // 400)]
        hours = [point[0] / 3600 for point in points]
        parts = [[point[part] / 1e6 for point in points] for part in range(1, 5)]
        panel.stackplot(hours, *parts, colors=_SHADES, labels=_PARTS, linewidth=0)
        panel.axhline(pool / 1e6, color="black", lw=0.6, ls="--")
        panel.set_title(f"{each.row['policy']}: {cell[0]} programs, {_tokens(cell[1])} host", fontsize=9)
        panel.set_ylabel("M tokens")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("hours")
    _legend(figure, panels[0])
    return figure


def _line(outcome: Outcome) -> dict[str, Any]:
    policy = outcome.row["policy"]
    style = "--" if policy.startswith("oracle") else "-"
    return {"label": policy, "color": _COLOURS.get(policy), "ls": style, "lw": 1.4}


def _legend(figure: Any, panel: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=8)
