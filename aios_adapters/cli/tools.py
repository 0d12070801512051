"""`aios tools`: the group of commands about tools."""

from __future__ import annotations

import typer

tools_app = typer.Typer(no_args_is_help=True, help="The kernel's tools, and long jobs.")
