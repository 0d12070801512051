"""Commands of `aios tools`: what the kernel hosts, called by hand, and long jobs."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated

import typer

from aios_adapters.cli.looking import ask
from aios_adapters.cli.output import Json, show_json, show_table
from aios_kernel.errors import from_code
from aios_kernel.syscalls import (
    JobList,
    ToolCancel,
    ToolInvoke,
    ToolJob,
    ToolJobs,
    ToolList,
    ToolOutput,
    Tools,
    ToolSubmit,
    ToolWait,
)

Name = Annotated[str, typer.Argument(help="The tool's name.")]
Arguments = Annotated[str, typer.Argument(help="Its arguments, as a JSON object.")]
JobId = Annotated[str, typer.Argument(help="The job's id; `aios tools jobs` shows it.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0.001, help="Seconds that it may take.")]
Key = Annotated[str, typer.Option("--key", help="Makes two calls one: the second is answered like the first.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_)
    for command in (call, submit, jobs, wait, cancel):
        app.command()(command)


def list_(json: Json = False) -> None:
    """List the tools that the kernel hosts."""
    tools = ask(ToolList(), Tools).tools
    if json:
        show_json(tools)
        return
    rows = [(tool.name, ", ".join(tool.parameters.get("properties", {})), tool.description) for tool in tools]
    show_table("", ("NAME", "ARGUMENTS", "DESCRIPTION"), rows)


def call(name: Name, arguments: Arguments = "{}", timeout: Timeout = None, key: Key = "", json: Json = False) -> None:
    """Run a tool and print its result."""
    output = ask(ToolInvoke(name, arguments, timeout, key), ToolOutput)
    show_json(output) if json else typer.echo(output.content)


def submit(name: Name, arguments: Arguments = "{}", timeout: Timeout = None, key: Key = "", json: Json = False) -> None:
    """Begin a tool as a long job, which goes on without this command and without the kernel; print its id."""
    job = ask(ToolSubmit(name, arguments, timeout, key), ToolJob)
    show_json(job) if json else typer.echo(job.job)


def jobs(
    ended: Annotated[bool, typer.Option("--all", help="Also those that ended in the last week.")] = False,
    json: Json = False,
) -> None:
    """List the long jobs of all your agents."""
    listed = ask(ToolJobs(ended), JobList).jobs
    if json:
        show_json(listed)
        return
    rows = [(job.job, job.tool, job.state, _when(job.submitted_s), _ran(job), job.agent, job.error) for job in listed]
    show_table("", ("JOB", "TOOL", "STATE", "SUBMITTED", "RAN S", "AGENT", "ERROR"), rows)


def wait(
    job: JobId,
    progress: Annotated[bool, typer.Option("--progress", help="Print what it prints, to standard error.")] = False,
    json: Json = False,
) -> None:
    """Wait for a job and print its result."""
    told = _end_of(job, progress=progress)
    if json:
        show_json(told)
    elif told.code:
        raise from_code(told.code, told.error)
    else:
        typer.echo(told.content, nl=False)


def cancel(job: JobId, json: Json = False) -> None:
    """End a job."""
    told = ask(ToolCancel(job), ToolJob)
    show_json(told) if json else typer.echo(f"{told.job} {told.state}")


def _end_of(job: str, *, progress: bool) -> ToolJob:
    position = 0
    while True:
        told = ask(ToolWait(job, position=position if progress else None), ToolJob)
        for line in told.lines:
            typer.echo(line, err=True)
        if told.ended_s is not None and not told.lines:
            return told
        position = told.position


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _ran(job: ToolJob) -> float | str:
    if job.started_s is None:
        return ""
    return (job.ended_s or time.time()) - job.started_s
