"""The plugin: which modules of the SDK are hooked, and by what. Imports nothing of the SDK itself."""

from __future__ import annotations

import functools

from aios_adapters.adapter import Adapter
from aios_adapters.hookspecs import hookimpl
from aios_adapters.patching import Patcher
from aios_adapters.versions import TESTED

_WEBSOCKETS = (
    "openai.resources.realtime.realtime",
    "openai.resources.realtime.translations.translations",
    "openai.resources.beta.realtime.realtime",
    "openai.resources.responses.responses",
    "openai.resources.beta.responses.responses",
    "openai.resources.live.live",
    "openai.resources.live.forks",
    "openai.resources.live.sideband",
)
"""Modules whose `connect` opens a websocket, which passes `request` by. Some exist in some versions only."""


@hookimpl
def aios_adapter() -> Adapter:
    """The adapter of the OpenAI SDK."""
    return Adapter(
        name="openai",
        tested=TESTED["openai"],
        optional=_WEBSOCKETS,
        hooks={
            "openai._base_client": _requests,
            "openai._client": functools.partial(_keyless, module="openai._client"),
            "openai.lib.azure": functools.partial(_keyless, module="openai.lib.azure"),
            **{module: functools.partial(_websockets, module=module) for module in _WEBSOCKETS},
        },
    )


def _requests(patcher: Patcher) -> None:
    import openai._base_client as base

    from aios_adapter_openai.requests import arequest, request

    patcher.method(base.SyncAPIClient, "request", request, kind="model")
    patcher.method(base.AsyncAPIClient, "request", arequest, kind="model")


def _keyless(patcher: Patcher, module: str) -> None:
    from aios_adapter_openai.keyless import allow_without_key

    allow_without_key(patcher, module)


def _websockets(patcher: Patcher, module: str) -> None:
    from aios_adapter_openai.websockets import refuse_in_scope

    refuse_in_scope(patcher, module)
