"""Running one step of one run: take the inputs out of the mailbox, call, hand the output on.

The same code runs a step of this process and one in another: the `Assignment` says all it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

import msgspec

from aios_adapters.messages import areceive, asend
from aios_adapters.workflow._failure import StepFailed, described
from aios_adapters.workflow._target import Target
from aios_adapters.workflow._values import plain
from aios_kernel.errors import AiosError, ProtocolError

S = TypeVar("S", bound=msgspec.Struct)


class Assignment(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One step of one run.

    Attributes:
        workflow: full name of the workflow's agent.
        program: the workflow's program; when it has ended nobody waits for this step any more.
        inputs: what the run was started with, as far as this step takes it.
        after: the steps whose outputs will come.
        then: the mailboxes that want the output.
    """

    workflow: str
    program: str
    run: str
    step: str
    inputs: dict[str, Any] = {}
    after: list[str] = []
    then: list[str] = []

    def topic_of(self, step: str) -> str:
        """The topic on which a step's outcome travels in this run."""
        return f"workflow/{self.run}/{step}"


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a step ended: with its output as JSON, or with an error in words."""

    output: Any = None
    error: str | None = None


async def perform(assignment: Assignment, target: Target) -> Any:
    """Run a step in the scope that is on; gives its output as plain JSON values.

    Raises StepFailed, after those who wait for the output were told.
    """
    try:
        values = await _inputs(assignment)
        output = plain(await target.call(values))
    except Exception as error:
        await _hand_on(assignment, Outcome(error=described(error)))
        if isinstance(error, StepFailed):
            raise
        fix = error.fix if isinstance(error, AiosError) else None
        raise StepFailed(assignment.step, assignment.workflow, assignment.run, described(error), fix=fix) from error
    await _hand_on(assignment, Outcome(output))
    return output


async def outcome_of(step: str, assignment: Assignment, *, timeout_s: float | None = None) -> Any:
    """Wait for another step's output. Raises StepFailed if it failed."""
    mail = await areceive(topic=assignment.topic_of(step), timeout_s=timeout_s)
    outcome = decoded(mail.body, Outcome)
    if outcome.error is not None:
        raise StepFailed(step, assignment.workflow, assignment.run, outcome.error)
    return outcome.output


def encoded(message: msgspec.Struct) -> str:
    """A message of the workflow as the body of a mail."""
    return msgspec.json.encode(message).decode()


def decoded(body: str, kind: type[S]) -> S:
    """The message in the body of a mail. Raises ProtocolError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ProtocolError(
            f"a mail on a workflow's topic is no {kind.__name__}: {error}",
            fix='send your own mail on topics that do not begin with "workflow"',
        ) from error


async def _inputs(assignment: Assignment) -> dict[str, Any]:
    outputs = await asyncio.gather(*(outcome_of(step, assignment) for step in assignment.after))
    return assignment.inputs | dict(zip(assignment.after, outputs, strict=True))


async def _hand_on(assignment: Assignment, outcome: Outcome) -> None:
    body, topic = encoded(outcome), assignment.topic_of(assignment.step)
    for mailbox in assignment.then:
        if outcome.error is None:
            await asend(mailbox, body, topic)
            continue
        with contextlib.suppress(AiosError):  # the step's own error says more than one of its delivery
            await asend(mailbox, body, topic)
