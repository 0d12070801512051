"""Where the HTTP front listens: loopback ports and unix sockets, nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aios_kernel.config import Config, home_of
from aios_kernel.errors import ConfigError
from aios_kernel.server.http_guard import is_loopback
from aios_kernel.server.socket_file import bind, remove

_UNIX = "unix"


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket; `url` tells clients where it is, `file` is a unix socket's path."""

    socket: socket.socket
    url: str
    file: Path | None = None

    def close(self) -> None:
        """Stop listening; a socket's file goes too."""
        self.socket.close()
        if self.file is not None:
            remove(self.file)


def listeners(config: Config) -> list[Listener]:
    """Bind every address of `config.http`. Raises ConfigError, with none of them left bound."""
    bound: list[Listener] = []
    try:
        for address in config.http.split(","):
            bound.append(_listener(address.strip(), config))
    except BaseException:
        close(bound)
        raise
    return bound


def close(bound: Sequence[Listener]) -> None:
    """Close them all."""
    for listener in bound:
        listener.close()


def _listener(address: str, config: Config) -> Listener:
    kind, _, path = address.partition(":")
    if kind == _UNIX:
        file = Path(path).expanduser() if path else home_of(config) / "run" / "http.sock"
        return Listener(bind(file), f"unix:{file}", file)
    return _tcp(address)


def _tcp(address: str) -> Listener:
    host, port = _parsed(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {address}: {error.strerror or error}",
            fix='choose another port, or ":0" for any free one',
        ) from error
    host, port = listener.getsockname()[:2]
    return Listener(listener, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def _parsed(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, the host on loopback. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f'http = "{address}" is neither host:port nor unix', fix='set it to "unix,127.0.0.1:8400", for example'
        )
    if not is_loopback(host):
        raise ConfigError(
            f'http = "{address}" would be reachable from other machines',
            fix='use "127.0.0.1:PORT"; put a proxy with TLS in front for anything else',
        )
    return "127.0.0.1" if host.lower() == "localhost" else host, int(port)
