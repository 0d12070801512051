"""`Workflow`: declares steps and runs them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, overload

from aios_adapters._agent import agent
from aios_adapters._options import MemoryMode
from aios_adapters._scope import required
from aios_adapters.workflow._run import Driver, Run
from aios_adapters.workflow._step import RemoteStep, Step
from aios_adapters.workflow._target import Target
from aios_kernel.errors import InvalidRequest
from aios_kernel.syscalls import Priority

T = TypeVar("T")
AnyStep: TypeAlias = Step[Any] | RemoteStep
After: TypeAlias = Iterable[AnyStep | str]


class StepDecorator(Protocol):
    """Turns a callable into a `Step` of what it gives."""

    @overload
    def __call__(self, function: Callable[..., Coroutine[Any, Any, T]]) -> Step[T]: ...

    @overload
    def __call__(self, function: Callable[..., T]) -> Step[T]: ...


class Workflow:
    """Named steps and what each waits for. A step comes after steps declared before it, so there are no circles.

    A run is a program of the kernel with the workflow's name; each step is a child of it, `workflow/step`.
    """

    def __init__(
        self,
        name: str,
        *,
        priority: Priority = "normal",
        group: str | None = None,
        memory: MemoryMode | None = None,
        kernel: str | None = None,
    ) -> None:
        """Name it; the options are those of `aios.agent` and hold for every step that has none of its own."""
        self.name = _checked(name, "a workflow")
        self._options: dict[str, Any] = {"priority": priority, "group": group, "memory": memory, "kernel": kernel}
        self._steps: dict[str, AnyStep] = {}

    @property
    def steps(self) -> Mapping[str, AnyStep]:
        """The steps by name, in the order of their declaration."""
        return dict(self._steps)

    def step(
        self,
        *,
        name: str | None = None,
        after: After = (),
        priority: Priority | None = None,
        memory: MemoryMode | None = None,
    ) -> StepDecorator:
        """Declare a step of this process: a function (sync or async), a bound method or a callable object.

        It is an agent without further decoration. A parameter takes the output of the step of its name in `after`,
        else the run's input of its name.

        Args:
            name: default the callable's own.
            after: steps whose output it waits for.
            priority: overrides the workflow's.
            memory: overrides the workflow's.
        """

        def declare(function: Callable[..., Any]) -> Step[Any]:
            own = name or getattr(function, "__name__", type(function).__name__)
            target = Target(function)
            step = Step[Any](_checked(own, "a step"), target, self._names(after), priority, memory)
            for parameter in step.inputs & set(self._steps):
                raise InvalidRequest(
                    f'the step "{own}" takes "{parameter}", which is a step that it does not wait for',
                    fix=f'@flow.step(after=["{parameter}"])',
                )
            return self._add(step)

        return declare

    def remote(
        self,
        name: str,
        *,
        after: After = (),
        command: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
        inputs: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> RemoteStep:
        """Declare a step of another process, which calls `aios.workflow.serve(function, name)`.

        Args:
            name: the step's name.
            after: steps whose output it waits for.
            command: starts the process for each run, for instance `[python_of_its_environment, "worker.py"]`;
                empty: a worker runs already, or will.
            environment: further variables for that process.
            inputs: the run's inputs that it gets.
            timeout_s: how long to wait for its output from the run's begin on, in seconds; None: on and on.
        """
        step = RemoteStep(
            _checked(name, "a step"),
            self._names(after),
            tuple(command),
            dict(environment or {}),
            frozenset(inputs),
            timeout_s,
        )
        self._add(step)
        return step

    def run(self, **inputs: Any) -> Run:
        """Run all steps, blocking; gives their outputs. See `arun`."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self.arun(**inputs))
        raise InvalidRequest("run() would block the event loop that is running", fix="await flow.arun(...)")

    async def arun(self, **inputs: Any) -> Run:
        """Run all steps, each as soon as what it waits for is there; gives their outputs.

        Raises StepFailed when a step failed (the others are cancelled), InvalidRequest for inputs that do not fit.
        """
        self._check_inputs(inputs)
        return await agent(self._arun, name=self.name, **self._options)(inputs)

    async def _arun(self, inputs: dict[str, Any]) -> Run:
        scope = required("a workflow")
        run = uuid.uuid4().hex[:12]
        outputs = await Driver(self._steps, scope, run, inputs).drive()
        return Run(self.name, run, scope.program, outputs)

    def _check_inputs(self, inputs: Mapping[str, Any]) -> None:
        steps = self._steps.values()
        missing = sorted({name for step in steps for name in step.needed} - set(inputs))
        if missing:
            raise InvalidRequest(
                f'the workflow "{self.name}" needs the inputs: {", ".join(missing)}',
                fix=f"flow.run({', '.join(f'{name}=...' for name in missing)})",
            )
        taken = {name for step in steps for name in step.inputs}
        if any(isinstance(step, Step) and step.target.open for step in steps):
            return
        unknown = sorted(set(inputs) - taken)
        if unknown:
            raise InvalidRequest(
                f'no step of the workflow "{self.name}" takes the inputs: {", ".join(unknown)}',
                fix=f"its inputs are: {', '.join(sorted(taken)) or 'none'}",
            )

    def _names(self, after: After) -> tuple[str, ...]:
        names = tuple(step if isinstance(step, str) else step.name for step in after)
        for name in names:
            if name not in self._steps:
                raise InvalidRequest(
                    f'the workflow "{self.name}" has no step "{name}" yet', fix="declare a step before those after it"
                )
        return names

    def _add(self, step: Any) -> Any:
        if step.name in self._steps:
            raise InvalidRequest(
                f'the workflow "{self.name}" has a step "{step.name}" already', fix='@flow.step(name="another name")'
            )
        self._steps[step.name] = step
        return step


def _checked(name: str, what: str) -> str:
    if not name or "/" in name:
        raise InvalidRequest(f"{name!r} cannot be the name of {what}", fix="choose a name without slashes")
    return name
