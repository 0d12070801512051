"""The error that a workflow ends with when one of its steps failed."""

from __future__ import annotations

from aios_kernel.errors import AiosError


class StepFailed(AiosError):
    """A step of a workflow failed; `__cause__` is its own exception if it ran in this process.

    Attributes:
        step: the step's name.
        run: the id of the workflow's run.
    """

    code = "step_failed"

    def __init__(self, step: str, workflow: str, run: str, why: str, *, fix: str | None = None) -> None:
        super().__init__(
            f'step "{step}" of the workflow "{workflow}" failed (run {run}): {why}',
            fix=fix or (None if "fix: " in why else "aios trace shows what each step did"),
        )
        self.step = step
        self.run = run


def described(error: BaseException) -> str:
    """An exception in one line."""
    text = error.message if isinstance(error, AiosError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
