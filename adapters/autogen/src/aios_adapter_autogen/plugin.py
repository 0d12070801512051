"""The plugin: which modules of AutoGen are hooked, once they are imported. Imports nothing of AutoGen itself."""

from __future__ import annotations

from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher
from aios_adapters.versions import TESTED


@hookimpl
def aios_adapter() -> Adapter:
    """The adapter of AutoGen AgentChat."""
    return Adapter(
        name="autogen",
        tested=TESTED["autogen"],
        hooks={
            "autogen_core": _runtime,
            "autogen_core.models": _models,
            "autogen_core.tools": _tools,
            "autogen_core.memory": _memory,
            "autogen_agentchat.agents": _agents,
            "autogen_agentchat.teams": _teams,
        },
    )


def _runtime(patcher: Patcher) -> None:
    from aios_adapter_autogen import runtime

    runtime.install(patcher)


def _models(patcher: Patcher) -> None:
    from aios_adapter_autogen import llm

    llm.install(patcher)


def _tools(patcher: Patcher) -> None:
    from aios_adapter_autogen import tools

    tools.install(patcher)


def _memory(patcher: Patcher) -> None:
    from aios_adapter_autogen import memory

    memory.install(patcher)


def _agents(patcher: Patcher) -> None:
    from aios_adapter_autogen import identity

    identity.install_agents(patcher)


def _teams(patcher: Patcher) -> None:
    from aios_adapter_autogen import identity

    identity.install_teams(patcher)
