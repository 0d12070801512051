"""Steps as a workflow declares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from aios_adapters._options import MemoryMode
from aios_adapters.workflow._target import Target
from aios_kernel.syscalls import Priority

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Step(Generic[T_co]):
    """A step of this process; `T_co` is what it gives.

    Attributes:
        name: its name, also its agent's name below the workflow's.
        target: what it runs.
        after: names of the steps whose outputs it gets.
        priority: None takes the workflow's.
        memory: None takes the workflow's.
    """

    name: str
    target: Target
    after: tuple[str, ...] = ()
    priority: Priority | None = None
    memory: MemoryMode | None = None

    @property
    def inputs(self) -> frozenset[str]:
        """The parameters that a run's inputs fill."""
        return frozenset(self.target.names) - frozenset(self.after)

    @property
    def needed(self) -> frozenset[str]:
        """Those of `inputs` without a default."""
        return frozenset(self.target.required) - frozenset(self.after)

    def output(self, value: Any) -> T_co:
        """A JSON value as the type that the step is annotated to give."""
        return self.target.output(value)


@dataclass(frozen=True)
class RemoteStep:
    """A step of another process.

    Attributes:
        name: its name, also the name under which its worker serves.
        command: starts the worker for each run; empty: one runs already.
        environment: further variables for the worker.
        inputs: the run's inputs that it gets.
        timeout_s: how long the run waits for its output, in seconds; None: on and on.
    """

    name: str
    after: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict[str, str])
    inputs: frozenset[str] = frozenset()
    timeout_s: float | None = None

    @property
    def needed(self) -> frozenset[str]:
        """All its inputs: what has a default there is not known here."""
        return self.inputs

    def output(self, value: Any) -> Any:
        """The JSON value as it is."""
        return value
