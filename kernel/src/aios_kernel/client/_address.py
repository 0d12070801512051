"""A kernel named by the URL of its HTTP front: the front tells where the socket is, and the client joins there.

The front listens on loopback only, so that its socket is a file of this machine; frames on it cost a thirtieth of HTTP.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import urllib.parse

import msgspec

from aios_kernel import errors
from aios_kernel.config import Config, is_url

PATH = "/kernel"
_ASK_S = 10.0


def resolved(config: Config) -> Config:
    """The configuration with a socket's path in the place of an URL.

    Raises:
        ConfigError: an URL that is none of this machine's.
        KernelUnavailable: nobody answers there, or something that is no kernel.
    """
    if not is_url(config.kernel):
        return config
    return msgspec.structs.replace(config, kernel=_ask(config.kernel, *_host_and_port(config.kernel)))


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise errors.ConfigError(f'kernel = "{url}" is no URL: {error}', fix=_EXAMPLE) from error
    if parts.scheme != "http" or port is None or parts.path not in ("", "/") or parts.query or parts.username:
        raise errors.ConfigError(f'kernel = "{url}" is not http://HOST:PORT, unix://PATH or a path', fix=_EXAMPLE)
    if not _is_loopback(host):
        raise errors.ConfigError(
            f'kernel = "{url}" is on another machine, and a kernel serves its own alone',
            fix="run the agent there; OPENAI_BASE_URL reaches it through a tunnel, without tools and memory",
        )
    return host, port


_EXAMPLE = "set AIOS_KERNEL to the URL that `aios serve --http 127.0.0.1:8400` prints, or unset it"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ask(url: str, host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=_ASK_S)
    try:
        connection.request("GET", PATH)
        answer = connection.getresponse()
        told = json.loads(answer.read(1 << 16)) if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise errors.KernelUnavailable(
            f"no kernel answers at {url}: {error}", fix=f"aios serve --http {host}:{port}"
        ) from error
    finally:
        connection.close()
    if not isinstance(told, dict) or not isinstance(told.get("socket"), str):
        raise errors.KernelUnavailable(f"what answers at {url} is no kernel", fix=f"aios serve --http {host}:{port}")
    return told["socket"]
