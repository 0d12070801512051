"""Processes that a run starts for its remote steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aios_adapters._handover import environment
from aios_adapters._scope import Scope
from aios_kernel.errors import ToolError

TOPIC = "workflow"
"""Where workers that run on their own wait for assignments."""
_LEAVE_S = 10.0
_LAST_WORDS_S = 1.0


def topic_for(program: str) -> str:
    """Where the workers that one run started wait for their assignment."""
    return f"{TOPIC}/{program}"


@asynccontextmanager
async def started(command: Sequence[str], variables: Mapping[str, str], scope: Scope) -> AsyncGenerator[Process]:
    """The process; at the end it may leave by itself if it has done its work, else it is told to."""
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **environment(scope), **variables})
    try:
        yield process
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await process.wait()
    finally:
        await _end(process)


async def watch(process: Process, command: Sequence[str]) -> None:
    """Wait for the process's end and raise ToolError: it should not come before its step's outcome."""
    status = await process.wait()
    raise ToolError(
        f"its worker ended with status {status} before it gave an output: {shlex.join(command)}",
        fix="its own output above says why; the worker must call aios.workflow.serve with the step's name",
    )


async def first(outcome: asyncio.Task[Any], gone: asyncio.Task[None] | None) -> Any:
    """The outcome, unless the worker's end comes clearly before it."""
    try:
        if gone is not None:
            await asyncio.wait({outcome, gone}, return_when=asyncio.FIRST_COMPLETED)
            # The worker may leave right after it sent its output: that mail is on its way.
            await asyncio.wait({outcome}, timeout=_LAST_WORDS_S)
            if not outcome.done():
                await gone
        return await outcome
    finally:
        outcome.cancel()


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
        process.terminate()
    try:
        async with asyncio.timeout(_LEAVE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
