"""Actions: what a role does is a tool call of the role, by the name of the action's class.

So a run's `tools=`, the policy file and the tools file say which actions may run, how many at a time; each is counted,
audited and drawn in the trace. MetaGPT has no errors of its own for tools: the kernel's refusal leaves `Role.run`.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

from aios_adapters import Scope
from aios_adapters.patching import Patcher

_NO_LIMIT_S = 86_400.0
"""An action asks the model, for as long as that takes; a limit is the user's to set, in the tools file."""
_LONGEST = 1_000
"""Characters of an argument that the kernel is told: a role hands its whole history to some actions."""


def install(patcher: Patcher) -> None:
    """Hook the `run` of every action, present and future."""
    from metagpt.actions.action import Action

    patcher.leaves(Action, {"run": _run}, late="__pydantic_init_subclass__")


async def _run(scope: Scope, original: Callable[..., Any], action: Any, /, *args: Any, **kwargs: Any) -> Any:
    if not _is_outermost(action, original):
        return await original(action, *args, **kwargs)
    run = functools.partial(original, action, *args, **kwargs)
    arguments = _told(original, action, args, kwargs)
    return await scope.arun_tool(_name(action), arguments, run, timeout_s=_NO_LIMIT_S)


def _name(action: Any) -> str:
    """Its class's name; an action that is an instruction alone, without a class, was given one."""
    from metagpt.actions.action import Action

    return action.name if type(action) is Action else type(action).__name__


def _is_outermost(action: Any, original: Callable[..., Any]) -> bool:
    """Whether `original` is the method that a call on the action meets first, and not one reached by `super()`."""
    return getattr(type(action).run, "__aios_original__", None) is original


def _told(original: Callable[..., Any], action: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The arguments by their names, as JSON of shortened texts."""
    try:
        named = dict(inspect.signature(original).bind(action, *args, **kwargs).arguments)
        del named[next(iter(named))]
    except TypeError:  # the action itself will say so
        named = {"args": args, **kwargs}
    return json.dumps({name: _text(value) for name, value in named.items()})


def _text(value: Any) -> str:
    text = "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text[:_LONGEST]
