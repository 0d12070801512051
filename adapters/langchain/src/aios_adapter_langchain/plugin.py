"""The plugin: which modules of LangChain and LangGraph are hooked, once they are imported. Imports nothing of them."""

from __future__ import annotations

from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher
from aios_adapters.versions import TESTED


@hookimpl
def aios_adapter() -> Adapter:
    """The adapter of LangChain and LangGraph."""
    return Adapter(
        name="langchain",
        tested=TESTED["langchain"],
        hooks={
            "langchain_core.language_models.chat_models": _chat_models,
            "langchain_core.language_models.llms": _completion_models,
            "langchain_core.tools.base": _tools,
            "langchain_core.vectorstores.base": _vector_stores,
            "langchain_openai.chat_models.base": _keyless,
            "langchain_openai.embeddings.base": _keyless_embeddings,
            "langgraph.checkpoint.base": _checkpoints,
            "langgraph.store.base": _stores,
            "langgraph.pregel._executor": _executors,
        },
    )


def _chat_models(patcher: Patcher) -> None:
    from aios_adapter_langchain import chat_models

    chat_models.install(patcher)


def _completion_models(patcher: Patcher) -> None:
    from aios_adapter_langchain import completion_models

    completion_models.install(patcher)


def _tools(patcher: Patcher) -> None:
    from aios_adapter_langchain import tools

    tools.install(patcher)


def _vector_stores(patcher: Patcher) -> None:
    from aios_adapter_langchain import vector_stores

    vector_stores.install(patcher)


def _keyless(patcher: Patcher) -> None:
    from aios_adapter_langchain import keyless

    keyless.install(patcher)


def _keyless_embeddings(patcher: Patcher) -> None:
    from aios_adapter_langchain import keyless

    keyless.install_embeddings(patcher)


def _checkpoints(patcher: Patcher) -> None:
    from aios_adapter_langchain import checkpoints

    checkpoints.install(patcher)


def _stores(patcher: Patcher) -> None:
    from aios_adapter_langchain import stores

    stores.install(patcher)


def _executors(patcher: Patcher) -> None:
    from aios_adapter_langchain import executors

    executors.install(patcher)
