"""Agents and teams under their own names: what an agent of a team asks for is asked by `<team>/<agent>`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from aios_adapters._scope import Scope
from aios_adapters._steps import step_async_generator
from aios_adapters.patching import Patcher

_FRAMEWORK = "autogen"


def install_agents(patcher: Patcher) -> None:
    """Hook every agent's turn."""
    from autogen_agentchat.agents import BaseChatAgent

    patcher.leaves(BaseChatAgent, {"on_messages": _on_messages, "on_messages_stream": _on_messages_stream})


def install_teams(patcher: Patcher) -> None:
    """Hook every team's run."""
    from autogen_agentchat.teams import BaseGroupChat

    patcher.leaves(BaseGroupChat, {"run_stream": _run_stream})


async def _on_messages(scope: Scope, original: Callable[..., Any], agent: Any, /, *args: Any, **kwargs: Any) -> Any:
    with scope.child(agent.name, _FRAMEWORK).on():
        return await original(agent, *args, **kwargs)


async def _on_messages_stream(
    scope: Scope, original: Callable[..., Any], agent: Any, /, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    own = scope.child(agent.name, _FRAMEWORK)
    async with aclosing(step_async_generator(original(agent, *args, **kwargs), own, new=False)) as messages:
        async for message in messages:
            yield message


async def _run_stream(
    scope: Scope, original: Callable[..., Any], team: Any, /, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    own = scope.child(_given_name(team), _FRAMEWORK)
    async with aclosing(step_async_generator(original(team, *args, **kwargs), own, new=False)) as messages:
        async for message in messages:
            yield message


def _given_name(team: Any) -> str | None:
    """The team's name if somebody chose it; the class's default says nothing that the scope does not know."""
    name = team.name
    return None if name == getattr(type(team), "DEFAULT_NAME", None) else name
