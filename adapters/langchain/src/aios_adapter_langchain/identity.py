"""Which agent is calling: the name that `create_agent(name=...)` was given, else the decorator's."""

from __future__ import annotations

from langchain_core.runnables.config import var_child_runnable_config

from aios_adapters import Scope

FRAMEWORK = "langchain"


def caller(scope: Scope) -> Scope:
    """The scope of LangChain's own agent that runs here.

    `create_agent` writes its name into the metadata of the run's configuration, which every node, model and tool
    below it inherits.
    """
    config = var_child_runnable_config.get()
    metadata = (config or {}).get("metadata") or {}
    name = metadata.get("lc_agent_name")
    if not isinstance(name, str) or _inherited(scope, name):
        return scope
    return scope.child(name, FRAMEWORK)


def _inherited(scope: Scope, name: str) -> bool:
    """Whether the name is that of an agent around this one: a decorated agent that is a tool of LangChain's agent."""
    outer = scope.parent
    while outer is not None and not outer.has_child(name):
        outer = outer.parent
    return outer is not None
