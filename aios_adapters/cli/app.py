"""The command tree: built-in commands, then those of plugins (`aios_commands`)."""

from __future__ import annotations

import typer

from aios_adapters.cli import audit, backups, hosted, looking, notes, running, settings, tools
from aios_adapters.plugins import host

app = typer.Typer(
    name="aios",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Many agents, many frameworks, one local model.",
)
app.command()(running.serve)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(running.run)
app.command()(looking.ps)
app.command()(looking.kill)
app.command()(looking.trace)
app.command()(backups.backup)
app.command()(backups.restore)
app.command()(settings.plugins)
app.command()(settings.doctor)
app.add_typer(settings.config_app, name="config")
app.add_typer(audit.audit_app, name="audit")
app.add_typer(notes.memory_app, name="memory")
app.add_typer(tools.tools_app, name="tools")
hosted.add_to(tools.tools_app)
host().activate()
host().hook.aios_commands(app=app)
