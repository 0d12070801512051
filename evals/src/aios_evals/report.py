"""The shape of every bench's output: one object with machine, versions and command, and flat rows."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
SCHEMA = 1
_VERSIONED = (
    "aios-kernel", "torch", "transformers", "langchain", "langgraph", "autogen-agentchat", "llama-index-core", "openai",
    "msgspec",
)  # fmt: skip


def report(
    bench: str, rows: Sequence[Row], *, versions: Mapping[str, str] | None = None, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """A bench's result: `{bench, schema, time, machine, versions, command, rows}`; units are in the rows' keys.

    Args:
        bench: its name.
        rows: of the result.
        versions: of what ran outside this environment.
        notes: how it was measured and what is missing; a key of its own if there are any.
    """
    return {
        "bench": bench,
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpu": _gpu_name(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **_versions(), **(versions or {})},
        "command": " ".join(["aios", *sys.argv[1:]]),
        **({"notes": list(notes)} if notes else {}),
        "rows": list(rows),
    }


def emit(
    bench: str,
    rows: Sequence[Row],
    *,
    json: bool,
    versions: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print a bench's result as JSON, or as a table for people; see `report`."""
    if json:
        made = report(bench, rows, versions=versions, notes=notes)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n")
        return
    show(bench, rows)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    Console(width=None if sys.stdout.isatty() else 220).print(_table(title, rows))


def tables(sections: Mapping[str, Sequence[Row]]) -> str:
    """Rows of several kinds as text, a table a kind."""
    console = Console(width=220, record=True, file=StringIO())
    for title, rows in sections.items():
        console.print(_table(title, rows))
        console.print()
    return console.export_text()


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def load_report(path: Path) -> dict[str, Any]:
    """A result that `--json` wrote. Raises ValueError for anything else."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ValueError(f"{path} is no bench result: {error}") from error
    if not isinstance(found, dict) or "rows" not in found or "bench" not in found:
        raise ValueError(f"{path} is no bench result: it has no `bench` and `rows`")
    return found


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _gpu_name() -> str | None:
    torch = sys.modules.get("torch")  # a bench that used no torch says nothing of a GPU
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
