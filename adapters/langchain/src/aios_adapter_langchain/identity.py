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
    return scope.child(name if isinstance(name, str) else None, FRAMEWORK)
