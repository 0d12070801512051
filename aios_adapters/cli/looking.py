"""Commands that look at a running kernel: `ps`, `kill`, `trace`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer

from aios_adapters.cli.gantt import write_gantt
from aios_adapters.cli.output import Json, show_json, show_table
from aios_adapters.cli.perfetto import write_perfetto
from aios_kernel.client import Client, connect
from aios_kernel.config import home_of, load
from aios_kernel.errors import KernelUnavailable, ProtocolError
from aios_kernel.syscalls import (
    Count,
    ExpertStatus,
    KernelInfo,
    KernelKill,
    KernelPs,
    KernelShutdown,
    KernelStatus,
    KernelTrace,
    Ok,
    ProgramInfo,
    Programs,
    Result,
    Span,
    Syscall,
    Trace,
)

R = TypeVar("R", bound=Result)
OWN_NAME = "aios-cli"


def ask(call: Syscall, answer: type[R]) -> R:
    """Ask the running kernel; never starts one."""
    try:
        connection = connect(client=OWN_NAME, start=False)
    except KernelUnavailable as error:
        if not error.message.startswith("no kernel answers"):
            raise
        raise KernelUnavailable(
            f"{error.message} (one that an agent started has left with it)",
            fix="aios serve, then run the agent; `aios trace` shows what the last kernel did",
        ) from error
    try:
        result = Client(connection).call(call)
    finally:
        connection.close()
    if not isinstance(result, answer):
        raise ProtocolError(f"the kernel answered {type(result).__name__}")
    return result


def visible(programs: list[ProgramInfo]) -> list[ProgramInfo]:
    """The programs without the command line's own."""
    return [program for program in programs if program.agent != OWN_NAME]


def ps(
    json: Json = False, running: Annotated[bool, typer.Option("--running", help="Leave out finished programs.")] = False
) -> None:
    """List the programs: state and what they wait for, calls, tokens, waiting times, attained service, KV."""
    status = ask(KernelInfo(), KernelStatus)
    programs = visible(ask(KernelPs(finished=not running), Programs).programs)
    if json:
        show_json({"kernel": status, "programs": programs})
        return
    typer.echo(
        f"kernel {status.pid}  model {status.model}  policy {status.policy}  up {status.uptime_s:.0f} s  "
        f"KV {status.kv_tokens - status.kv_free_tokens:,}/{status.kv_tokens:,} tokens"
    )
    if status.experts is not None:
        typer.echo(_experts(status.experts))
    for each in status.replicas:
        typer.echo(
            f"replica {each.url}  {'up' if each.up else 'DOWN'}  {each.families} programs with their children, "
            f"{each.open_calls} calls open, {each.lost_calls} lost to others"
        )
    columns = (
        "PROGRAM", "AGENT", "FRAMEWORK", "STATE", "LLM", "TOOL", "MEM", "PROMPT", "CACHED", "NEW", "QUEUED s", "RAN s",
        "SERVED", "IN POOL", "SWAPPED",
    )  # fmt: skip
    rows = [_row(program) for program in programs]
    if status.replicas:
        columns = (*columns, "REPLICA")
        rows = [(*row, program.replica) for row, program in zip(rows, programs, strict=True)]
    show_table("", columns, rows)


def _experts(experts: ExpertStatus) -> str:
    """One line on a mixture's expert cache."""
    asked = max(1, experts.hits + experts.late + experts.misses)
    cold = (
        f"  int8 {experts.int8_experts} (a logit differs by up to {experts.int8_logit_difference:.3g})"
        if experts.int8_experts
        else ""
    )
    return (
        f"experts {experts.resident:,}/{experts.experts:,} in {experts.used_bytes / 1e9:.2f} of "
        f"{experts.cache_bytes / 1e9:.2f} GB  found {experts.hits / asked:.0%}  "
        f"predicted {experts.predictor_hit_rate:.0%}{cold}"
    )


def _row(program: ProgramInfo) -> tuple[object, ...]:
    state = f"{program.state} ({program.waiting_for})" if program.waiting_for else program.state
    return (
        program.program, program.agent, program.framework, f"{state}: {program.error}" if program.error else state,
        program.llm_calls, program.tool_calls, program.memory_calls + program.storage_calls, program.prompt_tokens,
        program.cached_tokens, program.completion_tokens, program.queued_s, program.running_s,
        program.service_tokens, program.resident_tokens, program.swapped_tokens,
    )  # fmt: skip


def kill(
    target: Annotated[str | None, typer.Argument(help="A program's id or an agent's name.")] = None,
    kernel: Annotated[bool, typer.Option("--kernel", help="Stop the kernel itself.")] = False,
) -> None:
    """End a program, an agent's programs, or the kernel."""
    if kernel:
        ask(KernelShutdown(), Ok)
        typer.echo("the kernel is stopping")
        return
    if target is None:
        raise typer.BadParameter("name a program or an agent, or pass --kernel")
    typer.echo(f"{ask(KernelKill(target=target), Count).count} programs ended")


def trace(
    program: Annotated[str | None, typer.Argument(help="Only this program and its children.")] = None,
    json: Json = False,
    html: Annotated[Path | None, typer.Option(help="Draw a Gantt chart into this HTML file.")] = None,
    perfetto: Annotated[Path | None, typer.Option(help="Write Chrome trace JSON for ui.perfetto.dev here.")] = None,
) -> None:
    """Show what was called, by whom, how long it waited and ran; without a kernel, what the last one wrote down."""
    spans = [span for span in _spans(program) if span.agent != OWN_NAME]
    if html is not None:
        write_gantt(spans, html)
        typer.echo(f"wrote {html}: open it in a browser")
    if perfetto is not None:
        write_perfetto(spans, perfetto)
        typer.echo(f"wrote {perfetto}: open it at ui.perfetto.dev")
    if html is not None or perfetto is not None:
        return
    if json:
        show_json(spans)
    else:
        show_spans(spans)


def _spans(program: str | None) -> list[Span]:
    """The running kernel's spans, else those in the newest file that a kernel of this data directory has left."""
    try:
        return ask(KernelTrace(program=program), Trace).spans
    except KernelUnavailable:
        files = sorted((home_of(load()) / "traces").glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
        if not files:
            raise
    typer.echo(f"no kernel runs; the last one wrote {files[-1]}", err=True)
    spans: list[Span] = []
    for line in files[-1].read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):  # the last line of a kernel that was killed
            spans.append(msgspec.json.decode(line, type=Span))
    return [span for span in spans if program is None or span.program == program]


def show_spans(spans: list[Span]) -> None:
    """A table of spans, times relative to the first."""
    began = min((span.queued_s for span in spans), default=0.0)
    rows = [
        (span.queued_s - began, span.agent, span.syscall, span.detail, span.started_s - span.queued_s,
         span.ended_s - span.started_s, span.outcome, span.prompt_tokens, span.cached_tokens, span.diverged_tokens,
         span.completion_tokens)
        for span in sorted(spans, key=lambda span: span.queued_s)
    ]  # fmt: skip
    columns = (
        "AT s",
        "AGENT",
        "SYSCALL",
        "ABOUT",
        "WAITED s",
        "RAN s",
        "OUTCOME",
        "PROMPT",
        "CACHED",
        "DIVERGED",
        "NEW",
    )
    show_table("", columns, rows)
