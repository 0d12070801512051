"""Commands about the audit log: `audit list`, `audit verify`, `audit export`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import localtime, strftime
from typing import Annotated

import msgspec
import typer

from aios_adapters.cli.looking import ask
from aios_adapters.cli.output import Json, show_json, show_table
from aios_kernel.syscalls import AccessAudit, AccessVerify, AuditRecord, AuditRecords, AuditVerdict

audit_app = typer.Typer(no_args_is_help=True, help="The audit log: one record of every syscall.")
_PAGE = 5000
_Agent = Annotated[str | None, typer.Option(help="Only this agent's records.")]


@audit_app.command("list")
def list_records(
    agent: _Agent = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
    json: Json = False,
) -> None:
    """Show the newest records of what your agents asked for, and how it ended."""
    records = ask(AccessAudit(limit=limit, agent=agent), AuditRecords).records
    if json:
        show_json(records)
        return
    columns = ("SEQ", "TIME", "AGENT", "PROGRAM", "SYSCALL", "RESOURCE", "OUTCOME", "QUEUED s", "RAN s")
    show_table("", columns, [_row(record) for record in records])


@audit_app.command()
def verify(
    offline: Annotated[
        Path | None, typer.Option(help="Check the files of this data directory; no kernel may be running on it.")
    ] = None,
    seals: Annotated[Path | None, typer.Option(help="With --offline: folder of the seals, if elsewhere.")] = None,
    public: Annotated[str | None, typer.Option(help="With --offline: the public key (hex) to trust.")] = None,
    json: Json = False,
) -> None:
    """Check that no record was changed, removed, moved or added; the exit code is 1 if one was."""
    verdict = ask(AccessVerify(), AuditVerdict) if offline is None else _of_files(offline, seals, public)
    if json:
        show_json(verdict)
    elif verdict.ok:
        typer.echo(f"{verdict.records:,} records, none changed")
    else:
        typer.echo(f"the audit log does not hold: {verdict.why}", err=True)
    if not verdict.ok:
        raise typer.Exit(1)


@audit_app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Written as JSON lines, oldest record last.")], agent: _Agent = None
) -> None:
    """Write all records of your agents to a file."""
    count = 0
    with file.open("wb") as out:
        for record in _all(agent):
            out.write(msgspec.json.encode(record) + b"\n")
            count += 1
    typer.echo(f"wrote {count:,} records to {file}")


def _all(agent: str | None) -> Iterator[AuditRecord]:
    before: int | None = None
    while records := ask(AccessAudit(limit=_PAGE, agent=agent, before=before), AuditRecords).records:
        yield from records
        before = records[-1].seq


def _of_files(home: Path, seals: Path | None, public: str | None) -> AuditVerdict:
    """The kernel's own code looks, in the interpreter that kernels run in: a client need not have its libraries."""
    command = [os.environ.get("AIOS_PYTHON") or sys.executable, "-m", "aios_kernel.access", str(home)]
    command += ["--seals", str(seals)] if seals else []
    command += ["--public", public] if public else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        typer.echo(done.stderr.strip(), err=True)
        raise typer.Exit(2)
    return msgspec.json.decode(done.stdout, type=AuditVerdict)


def _row(record: AuditRecord) -> tuple[object, ...]:
    return (
        record.seq, strftime("%Y-%m-%d %H:%M:%S", localtime(record.time_s)), record.agent, record.program,
        record.syscall, record.resource, record.outcome, record.queued_s, record.ran_s,
    )  # fmt: skip
