"""A model at a server, ready to serve."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine.openai.codec import RemoteCodec
from aios_kernel.engine.openai.engine import OpenAIEngine
from aios_kernel.engine.openai.health import Watch
from aios_kernel.engine.openai.server import ModelServer, Patience
from aios_kernel.engine.openai.servers import Servers
from aios_kernel.errors import ConfigError, EngineUnavailable, UnknownModel
from aios_kernel.scheduler.settings import ServerHints

_log = logging.getLogger(__name__)


def openai_model(  # noqa: PLR0913 - what can be set
    name: str,
    base_url: str,
    *,
    api_key: str = "",
    slots: int = 64,
    patience: Patience | None = None,
    hints: ServerHints | None = None,
    watch: Watch | None = None,
    loras: Mapping[str, str] | None = None,
) -> LoadedModel:
    """Connect to an OpenAI-compatible server, or to several that serve the same model; of these one must be up.

    Args:
        name: of the model there; empty: the only one that it offers.
        base_url: such as `http://127.0.0.1:8000/v1`; several with commas between them.
        api_key: of that server; empty: none is sent.
        slots: calls that are open there at once; the policy decides whose.
        patience: how long to wait for the server.
        hints: what the server is told beside the calls; None: nothing.
        watch: how closely several servers are watched.
        loras: LoRA adapters by the names that agents use, and the model names that the server has for them.

    Raises:
        ConfigError: `base_url` is missing or no URL.
        EngineUnavailable: the server does not answer, or none of them does.
        EngineError: it refuses the key.
        UnknownModel: no name is given, and it offers not exactly one model.
    """
    urls = [url.strip() for url in base_url.split(",") if url.strip()]
    if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
        raise ConfigError(f'base_url is "{base_url}"', fix="aios serve openai:NAME --base-url http://127.0.0.1:8000/v1")
    servers = Servers([ModelServer(url, api_key, patience, watch) for url in dict.fromkeys(urls)])
    try:
        name = _found(name, servers)
    except BaseException:
        servers.close()
        raise
    engine = OpenAIEngine(servers, name, slots=slots, hints=hints, loras=loras)
    return LoadedModel(name, engine, RemoteCodec())


def _found(name: str, servers: Servers) -> str:
    """The model's name at those that answer; those that do not will be asked again by their watch."""
    missing: list[EngineUnavailable] = []
    for server in servers.all:
        try:
            name = _checked(name, server)
        except EngineUnavailable as error:
            _log.warning("%s", error.message)
            missing.append(error)
    if len(missing) == len(servers.all):
        raise missing[0]
    return name


def _checked(name: str, server: ModelServer) -> str:
    """The model's name there; a server that does not list it may still have it."""
    offered = sorted({str(entry.get("id")) for entry in server.models()})
    name = name or _only(offered, server.url)
    if offered and name not in offered:
        _log.warning("%s does not list the model %s; it lists %s", server.url, name, ", ".join(offered[:10]))
    return name


def _only(offered: list[str], url: str) -> str:
    if len(offered) != 1:
        raise UnknownModel(
            f"{url} offers {', '.join(offered) or 'no list of models'}", fix="name one: aios serve openai:NAME"
        )
    return offered[0]
