"""`aios memory`: look at what the kernel keeps for agents and groups, move it, and take it back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from aios_adapters import _notes
from aios_adapters.cli.looking import OWN_NAME, ask
from aios_adapters.cli.output import Json, show_json, show_table
from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import MemoryProgress, MemoryReindex, MemorySpaces, Note, Spaces

memory_app = typer.Typer(no_args_is_help=True, help="Notes of agents and groups.")
Namespace = Annotated[str, typer.Argument(help="`agent/NAME` or `group/NAME`, and what is below.")]

_CUT = 100


@contextlib.contextmanager
def _memory_of(namespace: str) -> Generator[_notes.Memory]:
    """The notes of a namespace, as their owner: the user at the terminal is everybody's principal."""
    ask(MemorySpaces(), Spaces)  # there is a kernel: none is started to look at
    kind, _, name = namespace.partition("/")
    owner = name.partition("/")[0]
    if kind not in ("agent", "group") or not owner:
        raise InvalidRequest(f"{namespace!a} is no namespace", fix="aios memory list shows the namespaces")
    agent, group = (owner, None) if kind == "agent" else (OWN_NAME, owner)
    with _notes.Memory(agent, namespace=namespace, group=group) as memory:
        yield memory


@memory_app.command("list")
def list_(
    namespace: Annotated[str | None, typer.Argument(help="Its notes; none: all namespaces.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many notes at most, the newest.")] = 50,
    json: Json = False,
) -> None:
    """List the namespaces, or the newest notes of one."""
    if namespace is None:
        spaces = ask(MemorySpaces(), Spaces).spaces
        if json:
            show_json(spaces)
        else:
            rows = [(space.namespace, space.notes, space.searchable) for space in spaces]
            show_table("", ("NAMESPACE", "NOTES", "SEARCHABLE"), rows)
        return
    with _memory_of(namespace) as memory:
        _show(list(memory)[-limit:], json)


@memory_app.command()
def search(
    namespace: Namespace,
    query: str,
    k: Annotated[int, typer.Option("-k", min=1, help="How many notes.")] = 5,
    json: Json = False,
) -> None:
    """Find notes by meaning and words."""
    with _memory_of(namespace) as memory:
        _show(memory.search(query, k), json)


@memory_app.command()
def show(namespace: Namespace, id: str, json: Json = False) -> None:
    """Show one note with all that is known of it."""
    with _memory_of(namespace) as memory:
        note = memory.get(id)
    if json:
        show_json(note)
        return
    for field in Note.__struct_fields__:
        value = getattr(note, field)
        if value not in (None, "", {}):
            typer.echo(f"{field:13} {_when(value) if field.endswith('_s') else value}")


@memory_app.command()
def export(namespace: Namespace, file: Path) -> None:
    """Write the notes of a namespace to a file, one JSON object a line."""
    with _memory_of(namespace) as memory:
        typer.echo(f"wrote {memory.dump(file)} notes to {file}")


@memory_app.command("import")
def import_(namespace: Namespace, file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)]) -> None:
    """Add the notes of an exported file; those with ids that are there already are replaced."""
    with _memory_of(namespace) as memory:
        typer.echo(f"added {memory.load(file)} notes to {namespace}")


@memory_app.command()
def rollback(
    agent: Annotated[str, typer.Argument(help="Whose changes; agents inside it count too.")],
    since: Annotated[str, typer.Option(help="`2026-11-20T14:30` (local time), or an age: `30m`, `2h`, `7d`.")],
    namespace: Annotated[str | None, typer.Option(help="Only there; none: in all namespaces.")] = None,
    json: Json = False,
) -> None:
    """Take back what an agent wrote since a time; what others changed since then stays."""
    since_s = _moment(since)
    names = [namespace] if namespace else [space.namespace for space in ask(MemorySpaces(), Spaces).spaces]
    undone: dict[str, int] = {}
    for name in names:
        with _memory_of(name) as memory:
            undone[name] = memory.rollback(agent, since_s)
    if json:
        show_json({"agent": agent, "since_s": since_s, "notes": undone})
    else:
        typer.echo(f"took back {sum(undone.values())} notes of {agent}")


@memory_app.command()
def reindex(
    follow: Annotated[bool, typer.Option("--wait", help="Until all notes are embedded.")] = False,
    only_look: Annotated[bool, typer.Option("--progress", help="Only say how far it is.")] = False,
    json: Json = False,
) -> None:
    """Embed all notes anew, in the background."""
    progress = ask(MemoryReindex(start=not only_look), MemoryProgress)
    while follow and progress.left:
        time.sleep(0.2)
        progress = ask(MemoryReindex(start=False), MemoryProgress)
    if json:
        show_json(progress)
    else:
        typer.echo(f"{progress.total - progress.left} of {progress.total} notes embedded by {progress.model}")


def _show(notes: list[Note], json: bool) -> None:
    if json:
        show_json(notes)
        return
    rows = [(note.id, _when(note.created_s), note.author, note.score or "", _line(note.text)) for note in notes]
    show_table("", ("ID", "WRITTEN", "AUTHOR", "SCORE", "TEXT"), rows)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CUT else line[: _CUT - 3] + "..."


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _moment(text: str) -> float:
    """Seconds since 1970 of a date, or of an age such as `2h`."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if text[-1:] in units and text[:-1].isdigit():
        return time.time() - int(text[:-1]) * units[text[-1]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise typer.BadParameter(f"{text!a} is neither a date nor an age such as 30m, 2h or 7d") from None
