"""Serving a step from a process of its own, for instance in another environment."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from aios_adapters import _steps
from aios_adapters._agent import Runner
from aios_adapters._handover import Foreign, parent_program
from aios_adapters._options import AgentOptions, MemoryMode
from aios_adapters._scope import required
from aios_adapters.messages import areceive, await_end
from aios_adapters.workflow import _process
from aios_adapters.workflow._failure import StepFailed
from aios_adapters.workflow._perform import Assignment, decoded, perform
from aios_adapters.workflow._target import Target
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import Priority

_log = logging.getLogger(__name__)


def serve(
    function: Callable[..., Any],
    name: str,
    *,
    priority: Priority = "normal",
    group: str | None = None,
    memory: MemoryMode | None = None,
    kernel: str | None = None,
) -> None:
    """Run the remote step `name` of workflows in this process. See `aserve`."""
    with contextlib.suppress(KeyboardInterrupt):  # how a worker that runs on its own is ended
        asyncio.run(aserve(function, name, priority=priority, group=group, memory=memory, kernel=kernel))


async def aserve(
    function: Callable[..., Any],
    name: str,
    *,
    priority: Priority = "normal",
    group: str | None = None,
    memory: MemoryMode | None = None,
    kernel: str | None = None,
) -> None:
    """Run the remote step `name` of workflows in this process.

    A process that a run started (`flow.remote(..., command=...)`) serves that run and returns; any other serves run
    after run until it is ended.

    Args:
        function: what the step runs, sync or async; its parameters are filled by name as in a local step.
        name: the step's name.
        priority: of its programs.
        group: of its programs; one that a run started belongs to the run's group.
        memory: as for `aios.agent`.
        kernel: overrides `AIOS_KERNEL`.
    """
    worker = _Worker(Target(function), AgentOptions(name, priority, group, memory=memory), kernel)
    if worker.parent is not None:
        await worker.serve_one()
        return
    while True:
        try:
            await worker.serve_one()
        except StepFailed as error:  # whoever waits for the step was told; the next run may do better
            _log.warning("%s", error, exc_info=error)


class _Worker:
    def __init__(self, target: Target, options: AgentOptions, kernel: str | None) -> None:
        self.parent = parent_program()
        self._target = target
        self._options = options
        self._kernel = kernel

    async def serve_one(self) -> None:
        """Take one assignment and perform it, as one program."""
        adopt = None if self.parent is None else functools.partial(Foreign, *self.parent)
        runner = Runner(self._options, self._kernel, adopt)
        await _steps.wrap_function(self._take_and_perform, runner)()

    async def _take_and_perform(self) -> None:
        required("serve")
        topic = _process.TOPIC if self.parent is None else _process.topic_for(self.parent[0])
        mail = await areceive(topic=topic)
        assignment = decoded(mail.body, Assignment)
        work = asyncio.create_task(perform(assignment, self._target))
        ended = asyncio.create_task(_end_of(assignment))
        try:
            await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
        finally:
            work.cancel()
            ended.cancel()


async def _end_of(assignment: Assignment) -> None:
    """Return when the workflow's program has ended: nobody waits for its steps any more."""
    with contextlib.suppress(AiosError):  # a kernel that does not know the program has forgotten it
        await await_end(assignment.program)
