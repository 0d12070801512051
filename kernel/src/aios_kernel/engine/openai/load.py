"""A model at a server, ready to serve."""

from __future__ import annotations

import logging

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine.openai.codec import RemoteCodec
from aios_kernel.engine.openai.engine import OpenAIEngine
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
        offered = sorted({str(entry.get("id")) for entry in server.models()})
        name = name or _only(offered, server.url)
    except BaseException:
        server.close()
        raise
    if offered and name not in offered:
        _log.warning("%s does not list the model %s; it lists %s", server.url, name, ", ".join(offered[:10]))
    return LoadedModel(name, OpenAIEngine(server, name, slots=slots), RemoteCodec())


def _only(offered: list[str], url: str) -> str:
    if len(offered) != 1:
        raise UnknownModel(
            f"{url} offers {', '.join(offered) or 'no list of models'}", fix="name one: aios serve openai:NAME"
        )
    return offered[0]
