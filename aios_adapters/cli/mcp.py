"""`aios mcp`: the kernel as an MCP server on standard input and output."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer


def mcp(
    agent: Annotated[str, typer.Option(help="The agent in whose name the client's calls are made.")] = "mcp",
    group: Annotated[str | None, typer.Option(help="Its group.")] = None,
) -> None:
    """Be an MCP server for a client that starts one: memory, storage, hosted tools. Joins or starts the kernel."""
    python = os.environ.get("AIOS_PYTHON") or sys.executable
    command = [python, "-m", "aios_kernel.mcp_front", "--agent", agent]
    sys.stdout.flush()
    os.execv(python, [*command, "--group", group] if group else command)
