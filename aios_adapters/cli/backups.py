"""`aios backup` and `aios restore`: the data directory, while the kernel runs."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from aios_adapters.cli.output import Json, show_json, show_table
from aios_kernel.config import home_of, load

Home = Annotated[str | None, typer.Option("--home", help="Data directory.")]


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder.")], home: Home = None, json: Json = False
) -> None:
    """Copy notes, files, grants and the audit log into a new folder; a running kernel goes on."""
    config = load({"home": home})
    _show(_run(config.python, "save", home_of(config), folder.absolute()), json)


def restore(
    folder: Annotated[Path, typer.Argument(help="What `aios backup` wrote.")], home: Home = None, json: Json = False
) -> None:
    """Put a backup into a data directory that is empty."""
    config = load({"home": home})
    _show(_run(config.python, "restore", folder.absolute(), home_of(config)), json)


def _run(python: str, *arguments: str | Path) -> Any:
    """Ask the kernel's own code, in its own interpreter: the command line has no database library."""
    command = [python or sys.executable, "-m", "aios_kernel.backup", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise typer.Exit(1)
    return msgspec.json.decode(done.stdout)


def _show(manifest: Any, json: bool) -> None:
    if json:
        show_json(manifest)
        return
    made = datetime.fromtimestamp(manifest["time_s"]).astimezone().isoformat(timespec="seconds")
    rows = [(kept["name"], kept["size_bytes"], kept["version"]) for kept in manifest["databases"]]
    show_table(f"of {made}", ("DATABASE", "BYTES", "VERSION"), rows)
