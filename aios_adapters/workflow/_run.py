"""One run of a workflow: all steps at once, each in a scope of its own, until all have given their output."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from aios_adapters._agent import agent
from aios_adapters._scope import Scope
from aios_adapters.messages import asend
from aios_adapters.workflow import _process
from aios_adapters.workflow._failure import StepFailed, described
from aios_adapters.workflow._perform import Assignment, encoded, outcome_of, perform
from aios_adapters.workflow._step import RemoteStep, Step
from aios_kernel.errors import AiosError

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run that has ended well.

    Attributes:
        workflow: the workflow's name.
        id: the run's id.
        program: its program in the process table and the trace.
        outputs: the steps' outputs by name, as plain JSON values.
    """

    workflow: str
    id: str
    program: str
    outputs: dict[str, Any]

    @overload
    def __getitem__(self, step: Step[T]) -> T: ...

    @overload
    def __getitem__(self, step: RemoteStep | str) -> Any: ...

    def __getitem__(self, step: Step[Any] | RemoteStep | str) -> Any:
        """A step's output: by the step in the type that it is annotated to give, by name as plain JSON."""
        return self.outputs[step] if isinstance(step, str) else step.output(self.outputs[step.name])


@dataclass
class Driver:
    """Runs the steps of one run inside the workflow's scope."""

    steps: Mapping[str, Step[Any] | RemoteStep]
    scope: Scope
    run: str
    inputs: Mapping[str, Any]
    _outputs: dict[str, Any] = field(default_factory=dict[str, Any])

    async def drive(self) -> dict[str, Any]:
        """All outputs by step. The first step that fails cancels the others; raises its StepFailed."""
        try:
            async with asyncio.TaskGroup() as group:
                for step in self.steps.values():
                    group.create_task(self._remote(step) if isinstance(step, RemoteStep) else self._local(step))
        except BaseExceptionGroup as failures:
            first = failures.exceptions[0]
            raise first from first.__cause__
        return {name: self._outputs[name] for name in self.steps}

    async def _local(self, step: Step[Any]) -> None:
        options = self.scope.options
        run = agent(
            perform, name=step.name, priority=step.priority or options.priority, memory=step.memory or options.memory
        )
        self._outputs[step.name] = await run(self._assignment(step), step.target)

    async def _remote(self, step: RemoteStep) -> None:
        assignment = self._assignment(step)
        topic = _process.topic_for(self.scope.program) if step.command else _process.TOPIC
        try:
            await asend(self._mailbox(step), encoded(assignment), topic)
            async with self._worker(step) as gone:
                outcome = asyncio.create_task(outcome_of(step.name, assignment, timeout_s=step.timeout_s))
                self._outputs[step.name] = await _process.first(outcome, gone)
        except (AiosError, OSError) as error:
            if isinstance(error, StepFailed):
                raise
            fix = error.fix if isinstance(error, AiosError) else None
            raise StepFailed(step.name, self.scope.agent, self.run, described(error), fix=fix) from error

    @asynccontextmanager
    async def _worker(self, step: RemoteStep) -> AsyncGenerator[asyncio.Task[None] | None]:
        """The process of a step that brings one; gives a task that fails when the process ends."""
        if not step.command:
            yield None
            return
        async with _process.started(step.command, step.environment, self.scope) as process:
            gone = asyncio.create_task(_process.watch(process, step.command))
            try:
                yield gone
            finally:
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError, AiosError):  # whoever waited for it has its error
                    await gone

    def _assignment(self, step: Step[Any] | RemoteStep) -> Assignment:
        then = [self._mailbox(other) for other in self.steps.values() if step.name in other.after]
        if isinstance(step, RemoteStep):
            then.append(self.scope.program)
        return Assignment(
            workflow=self.scope.agent,
            program=self.scope.program,
            run=self.run,
            step=step.name,
            inputs={name: value for name, value in self.inputs.items() if self._takes(step, name)},
            after=list(step.after),
            then=then,
        )

    def _mailbox(self, step: Step[Any] | RemoteStep) -> str:
        alone = isinstance(step, RemoteStep) and not step.command
        return step.name if alone else f"{self.scope.agent}/{step.name}"

    def _takes(self, step: Step[Any] | RemoteStep, name: str) -> bool:
        return name in step.inputs or (isinstance(step, Step) and step.target.open)
