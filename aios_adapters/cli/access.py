"""Commands about access: the policy (`access`), and calls that wait for a person (`approvals`, `approve`, `deny`)."""

from __future__ import annotations

import time
from typing import Annotated, cast, get_args

import typer

from aios_adapters.cli.looking import OWN_NAME, ask
from aios_adapters.cli.output import Json, show_json, show_table
from aios_kernel.client import Client, connect
from aios_kernel.errors import NotFound
from aios_kernel.syscalls import (
    AccessApprove,
    AccessCheck,
    AccessGrants,
    AccessPending,
    AccessPolicy,
    AccessVerdict,
    Approval,
    Approvals,
    GrantList,
    Ok,
    PolicyText,
    Right,
)

access_app = typer.Typer(no_args_is_help=True, help="Who may do what: the policy, grants, and which rule decides.")
_Remember = Annotated[bool, typer.Option("--remember", help="The same answer for the rest of that run.")]
_Id = Annotated[str, typer.Argument(help="As `aios approvals` lists it.")]
_ANSWERS = {"y": (True, False), "a": (True, True), "n": (False, False), "d": (False, True)}
"""Answers to the prompt: whether it is allowed, and whether for the whole run."""


@access_app.command()
def show(json: Json = False) -> None:
    """Show the policy in force, and where it stands."""
    _show(ask(AccessPolicy(), PolicyText), json)


@access_app.command()
def reload(json: Json = False) -> None:
    """Read the policy file again; a wrong one is refused and the old one stays."""
    policy = ask(AccessPolicy(reload=True), PolicyText)
    if json:
        show_json(policy)
    else:
        typer.echo(f"the policy is now that of {policy.source}")


@access_app.command()
def check(  # noqa: PLR0913 - what an agent says of itself, and how
    agent: Annotated[str, typer.Argument(help="An agent's name; with --program ignored.")],
    right: Annotated[str, typer.Argument(help="read, write, call, use, send or spawn.")],
    resource: Annotated[str, typer.Argument(help="Such as tool/search, model/NAME, agent/NAME/notes.")],
    group: Annotated[str | None, typer.Option(help="The agent's group; else its principal's own.")] = None,
    framework: Annotated[str, typer.Option(help="The agent's framework.")] = "",
    tainted: Annotated[bool, typer.Option("--tainted", help="As if untrusted content had reached it.")] = False,
    program: Annotated[str | None, typer.Option(help="Ask about this run, with its parents and its taint.")] = None,
    json: Json = False,
) -> None:
    """Tell what would be decided and which rule decides; the exit code is 1 unless it is allowed."""
    if right not in get_args(Right):
        raise typer.BadParameter(f'"{right}" is no right; there are: {", ".join(get_args(Right))}')
    call = AccessCheck(
        right=cast(Right, right), resource=resource, agent=agent, group=group, framework=framework, tainted=tainted,
        program=program,
    )  # fmt: skip
    verdict = ask(call, AccessVerdict)
    if json:
        show_json(verdict)
    else:
        typer.echo(f"{verdict.effect}: {verdict.rule}")
        typer.echo(f"roles: {', '.join(verdict.roles) or 'none'}")
    if verdict.effect != "allow":
        raise typer.Exit(1)


@access_app.command()
def grants(json: Json = False) -> None:
    """List what agents gave one another."""
    found = ask(AccessGrants(), GrantList).grants
    if json:
        show_json(found)
        return
    rows = [(row.to, row.right, row.resource, row.granted_by, "yes" if row.holds else "no") for row in found]
    show_table("", ("AGENT", "MAY", "RESOURCE", "GIVEN BY", "WHO HOLDS IT"), rows)


def approvals(
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, show each call that waits, and ask.")] = False,
) -> None:
    """List the calls that wait for a person, or answer them one by one as they come."""
    if watch:
        _watch()
        return
    waiting = ask(AccessPending(), Approvals).approvals
    if json:
        show_json(waiting)
        return
    rows = [
        (each.id, each.agent, f"{each.right} {each.resource}", ", ".join(each.taint), _left(each), each.arguments)
        for each in waiting
    ]
    show_table("", ("ID", "AGENT", "WANTS TO", "TAINTED BY", "LEFT s", "WITH"), rows)


def approve(id: _Id, remember: _Remember = False) -> None:
    """Let a call run that waits for a person."""
    ask(AccessApprove(id=id, allow=True, remember=remember), Ok)
    typer.echo("approved" + (" for the whole run" if remember else ""))


def deny(id: _Id, remember: _Remember = False) -> None:
    """Refuse a call that waits for a person."""
    ask(AccessApprove(id=id, allow=False, remember=remember), Ok)
    typer.echo("denied" + (" for the whole run" if remember else ""))


def _watch() -> None:
    connection = connect(client=OWN_NAME, start=False)
    try:
        client, after = Client(connection), 0
        typer.echo("waiting for calls that need a person; ctrl-C ends this, and answers nothing")
        while True:
            found = client.call(AccessPending(after=after, wait=True))
            assert isinstance(found, Approvals)
            for each in found.approvals:
                after = each.number
                _ask_about(client, each)
    except (KeyboardInterrupt, typer.Abort, EOFError):
        typer.echo()
    finally:
        connection.close()


def _ask_about(client: Client, each: Approval) -> None:
    typer.echo(
        f'\nagent "{each.agent}"{f" ({each.framework})" if each.framework else ""}, run {each.program}, '
        f"wants to {each.right} {each.resource}\n"
        f"  with       {each.arguments}\n"
        f"  tainted by {', '.join(each.taint) or 'nothing'}\n"
        f"  because of {each.rule}; in {_left(each):.0f} s it is {'allowed' if each.default == 'allow' else 'denied'}"
    )
    answer = ""
    while answer not in {*_ANSWERS, "s"}:
        answer = typer.prompt("[y]es, [n]o, [a]lways in this run, [d]eny always in this run, [s]kip")
    if answer == "s":
        return
    allow, remember = _ANSWERS[answer]
    try:
        client.call(AccessApprove(id=each.id, allow=allow, remember=remember))
    except NotFound:
        typer.echo("too late: it has been answered, has run out, or has gone")


def _left(each: Approval) -> float:
    return max(0.0, each.expires_s - time.time())


def _show(policy: PolicyText, json: bool) -> None:
    if json:
        show_json(policy)
    else:
        typer.echo(f"# {policy.source}\n{policy.text}", nl=not policy.text.endswith("\n"))
