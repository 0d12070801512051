"""`aios tools`: the MCP servers of the tools file, and which of their tools are approved."""

from __future__ import annotations

from time import localtime, strftime
from typing import Annotated

import typer

from aios_adapters.cli.looking import ask
from aios_adapters.cli.output import Json, show_json, show_table
from aios_kernel.syscalls import (
    Count,
    McpServerInfo,
    McpServers,
    ToolApprove,
    ToolChange,
    ToolPinned,
    ToolPins,
    ToolReview,
    ToolReviewed,
    ToolServers,
)

tools_app = typer.Typer(
    no_args_is_help=True, help="The kernel's tools, long jobs, and MCP servers with what is approved of them."
)
_Server = Annotated[str, typer.Argument(help="Its name in the tools file.")]


@tools_app.command()
def servers(json: Json = False) -> None:
    """List the MCP servers: how they are, and who has approved their tools when."""
    found = ask(ToolServers(), McpServers).servers
    if json:
        show_json(found)
        return
    columns = ("SERVER", "STATE", "PROTOCOL", "STARTS", "APPROVED TOOLS", "BY", "AT", "PLACE", "ERROR")
    show_table("", columns, [_row(server) for server in found])


@tools_app.command()
def pins(server: Annotated[str | None, typer.Argument(help="Only this server.")] = None, json: Json = False) -> None:
    """List the approved tools, with the hash of what was approved."""
    found = ask(ToolPins(server), ToolPinned).pins
    if json:
        show_json(found)
        return
    rows = [(pin.server, pin.tool, pin.digest[:12], pin.description.partition("\n")[0][:80]) for pin in found]
    show_table("", ("SERVER", "TOOL", "HASH", "DESCRIPTION"), rows)


@tools_app.command()
def diff(server: _Server, json: Json = False) -> None:
    """Show how what a server lists now differs from what is approved; the exit code is 1 if it does."""
    reviewed = ask(ToolReview(server), ToolReviewed)
    if json:
        show_json(reviewed)
    else:
        _show(reviewed)
    if reviewed.changes:
        raise typer.Exit(1)


@tools_app.command()
def approve(server: _Server, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Approve what a server lists now: it is shown first, and pinned by its hash."""
    reviewed = ask(ToolReview(server), ToolReviewed)
    _show(reviewed)
    if not yes:
        typer.confirm(f"Approve these tools of {server}?", abort=True)
    count = ask(ToolApprove(server, reviewed.digest), Count).count
    typer.echo(f"approved {count} tools of {server} ({reviewed.digest[:12]})")


def _show(reviewed: ToolReviewed) -> None:
    if not reviewed.changes:
        typer.echo(f"{reviewed.name} lists what is approved ({reviewed.digest[:12]})")
    for change in reviewed.changes:
        _show_change(change)


def _show_change(change: ToolChange) -> None:
    typer.echo(f"{change.tool}: {change.what}")
    for sign, text in (("-", change.before), ("+", change.after)):
        for line in text.splitlines():
            typer.echo(f"  {sign} {line}")
    if change.hidden:
        typer.echo(f"  ! in characters that no screen shows it says: {change.hidden}")


def _row(server: McpServerInfo) -> tuple[object, ...]:
    at = strftime("%Y-%m-%d %H:%M", localtime(server.approved_s)) if server.approved_by else ""
    by = server.approved_by or "nobody yet"
    return (
        server.name, server.state, server.protocol, server.starts, server.approved_tools, by, at, server.place,
        server.error,
    )  # fmt: skip
