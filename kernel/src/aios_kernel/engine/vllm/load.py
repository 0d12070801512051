"""A model on a vLLM server of the kernel's own, ready to serve."""

from __future__ import annotations

import http.client
import importlib.util
import logging
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine._lora_source import locate_lora
from aios_kernel.engine.openai.codec import RemoteCodec
from aios_kernel.engine.openai.servers import Servers
from aios_kernel.engine.settings import VllmSettings
from aios_kernel.engine.vllm.child import ChildServer
from aios_kernel.engine.vllm.command import command, environment
from aios_kernel.engine.vllm.engine import VllmEngine
from aios_kernel.engine.vllm.server import ChildModelServer
from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.settings import ServerHints

_log = logging.getLogger(__name__)


def vllm_model(
    model: str,
    settings: VllmSettings,
    *,
    home: Path,
    slots: int = 64,
    hints: ServerHints | None = None,
    loras: Mapping[str, str] | None = None,
) -> LoadedModel:
    """Start vLLM's server for a model and wait until it answers.

    It listens on loopback, with a key that only its environment has. When it dies it is started again: calls that were
    open end with EngineUnavailable, those that come meanwhile wait.

    Args:
        model: a folder or a Hugging Face id.
        settings: of the server.
        home: data directory; its log is `run/vllm.log` there.
        slots: calls that are open there at once.
        hints: what it is told beside the calls; priorities and salts always are.
        loras: adapters in PEFT's format by name, each a folder or a Hugging Face id; no others can be loaded later.

    Raises:
        ConfigError: vLLM is not installed where it is looked for, or a setting or an adapter is wrong.
        UnknownModel: an adapter is not where it should be.
        EngineUnavailable: the server does not come up.
    """
    if not settings.python and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed in the kernel's environment",
            fix='install it in one of its own and set [vllm] python = "/that/bin/python" in aios.toml',
        )
    began = time.monotonic()
    name = Path(model).name if Path(model).is_dir() else model
    port, key = free_port(), secrets.token_hex(16)
    child = ChildServer(
        command(model, name, port, settings, {name: locate_lora(source) for name, source in (loras or {}).items()}),
        environment(key),
        log=home / "run" / "vllm.log",
        healthy=lambda: _answers(port),
        timeout_s=settings.start_timeout_s,
        name="vLLM's server",
    )
    child.start()
    hints = msgspec.structs.replace(hints or ServerHints(), priority=True, cache_salt=True)
    servers = Servers([ChildModelServer(f"http://127.0.0.1:{port}/v1", key, child)])
    engine = VllmEngine(servers, name, child, slots=slots, hints=hints, loras=loras or {})
    _log.info("vLLM serves %s after %.1f s, pid %s", name, time.monotonic() - began, child.pid)
    return LoadedModel(name, engine, RemoteCodec())


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
