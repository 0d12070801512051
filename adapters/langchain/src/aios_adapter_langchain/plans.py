"""Plans: what a memory object asks the kernel for, written once and run blocking or on the event loop.

A plan is a generator that yields syscalls, each with the type of its answer, and is sent the answers.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from aios_adapters import Scope
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import Result, Syscall

T = TypeVar("T")
Ask: TypeAlias = tuple[Syscall, type[Result]]
Plan: TypeAlias = Generator[Ask, Any, T]


def run(scope: Scope, plan: Plan[T]) -> T:
    """Run a plan, blocking."""
    try:
        ask = next(plan)
        while True:
            try:
                answer = scope.call(*ask)
            except AiosError as error:
                ask = plan.throw(error)
            else:
                ask = plan.send(answer)
    except StopIteration as stop:
        return stop.value


async def arun(scope: Scope, plan: Plan[T]) -> T:
    """Run a plan on the event loop."""
    try:
        ask = next(plan)
        while True:
            try:
                answer = await scope.acall(*ask)
            except AiosError as error:
                ask = plan.throw(error)
            else:
                ask = plan.send(answer)
    except StopIteration as stop:
        return stop.value
