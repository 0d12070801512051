"""A model at a server, ready to serve."""

from __future__ import annotations

import logging
from typing import Any

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine.openai.codec import RemoteCodec
from aios_kernel.engine.openai.engine import WINDOW, OpenAIEngine
from aios_kernel.engine.openai.server import ModelServer, Patience
from aios_kernel.errors import ConfigError, UnknownModel

_log = logging.getLogger(__name__)


def openai_model(
    name: str, base_url: str, *, api_key: str = "", slots: int = 64, patience: Patience | None = None
) -> LoadedModel:
    """Connect to an OpenAI-compatible server.

    Args:
        name: of the model there; empty: the only one that it offers.
        base_url: such as `http://127.0.0.1:8000/v1`.
        api_key: of that server; empty: none is sent.
        slots: calls that are open there at once; the policy decides whose.
        patience: how long to wait for the server.

    Raises:
        ConfigError: `base_url` is missing or no URL.
        EngineUnavailable: the server does not answer.
        EngineError: it refuses the key.
        UnknownModel: no name is given, and it offers not exactly one model.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f'base_url is "{base_url}"', fix="aios serve openai:NAME --base-url http://127.0.0.1:8000/v1")
    server = ModelServer(base_url, api_key, patience)
    try:
        offered = {str(entry.get("id")): entry for entry in server.models()}
        name = name or _only(offered, server.url)
    except BaseException:
        server.close()
        raise
    if offered and name not in offered:
        _log.warning("%s does not list the model %s; it lists %s", server.url, name, ", ".join(sorted(offered)[:10]))
    window = _window(offered.get(name, {}))
    return LoadedModel(name, OpenAIEngine(server, name, slots=slots, window=window), RemoteCodec(window))


def _only(offered: dict[str, dict[str, Any]], url: str) -> str:
    if len(offered) != 1:
        raise UnknownModel(
            f"{url} offers {', '.join(sorted(offered)) or 'no list of models'}", fix="name one: aios serve openai:NAME"
        )
    return next(iter(offered))


def _window(entry: dict[str, Any]) -> int:
    """The longest sequence, where the server's list tells it (vLLM does)."""
    told = entry.get("max_model_len")
    return told if isinstance(told, int) and told > 0 else WINDOW
