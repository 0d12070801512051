"""The plugin: which modules of MetaGPT are hooked, once they are imported. Imports nothing of it."""

from __future__ import annotations

from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher
from aios_adapters.versions import TESTED


@hookimpl
def aios_adapter() -> Adapter:
    """The adapter of MetaGPT."""
    return Adapter(
        name="metagpt",
        tested=TESTED["metagpt"],
        hooks={
            "metagpt.utils.yaml_model": _settings,
            "metagpt.provider.base_llm": _llm,
            "metagpt.provider.openai_api": _openai_llm,
            "metagpt.actions.action": _actions,
            "metagpt.roles.role": _roles,
        },
    )


def _settings(patcher: Patcher) -> None:
    from aios_adapter_metagpt import settings

    settings.install(patcher)


def _llm(patcher: Patcher) -> None:
    from aios_adapter_metagpt import llm

    llm.install(patcher)


def _openai_llm(patcher: Patcher) -> None:
    from aios_adapter_metagpt import openai_llm

    openai_llm.install(patcher)


def _actions(patcher: Patcher) -> None:
    from aios_adapter_metagpt import actions

    actions.install(patcher)


def _roles(patcher: Patcher) -> None:
    from aios_adapter_metagpt import roles

    roles.install(patcher)
