"""The adapter's declaration. The framework is imported by nothing here: the installers run when it is."""

from __future__ import annotations

from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher
from aios_adapters.versions import TESTED


@hookimpl
def aios_adapter() -> Adapter:
    """LlamaIndex: agents, workflows, LLMs, tools, chat stores and memory."""
    return Adapter(
        name="llamaindex",
        tested=TESTED["llamaindex"],
        hooks={
            "llama_index.core": _core,
            "llama_index.core.agent.workflow": _agents,
            "workflows.workflow": _workflows,
            "llama_index.llms.openai.base": _openai,
            "llama_index.llms.openai.responses": _openai_responses,
        },
    )


def _core(patcher: Patcher) -> None:
    from aios_adapter_llamaindex import background, chat_stores, llm, mediated, tools

    for part in (llm, tools, chat_stores, mediated, background):
        part.install(patcher)


def _agents(patcher: Patcher) -> None:
    from aios_adapter_llamaindex import agents

    agents.install(patcher)


def _workflows(patcher: Patcher) -> None:
    from aios_adapter_llamaindex import workflow_runs

    workflow_runs.install(patcher)


def _openai(patcher: Patcher) -> None:
    from aios_adapter_llamaindex import openai_llm

    openai_llm.install(patcher)


def _openai_responses(patcher: Patcher) -> None:
    from aios_adapter_llamaindex import openai_llm

    openai_llm.install_responses(patcher)
