"""The adapter in place, no key in the environment, no network."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from aios_adapters import host

LOCAL = ("127.0.0.1", "::1", "localhost")


def pytest_configure(config: pytest.Config) -> None:
    # The framework never closes the in-memory database of a `Memory`; whenever that is collected, it complains.
    config.addinivalue_line("filterwarnings", "ignore:.*aiosqlite.core.Connection.*was deleted:ResourceWarning")


@pytest.fixture(autouse=True)
def adapter() -> None:
    """The adapter, also where the distribution is only on the path and has no entry point."""
    from aios_adapter_llamaindex import plugin

    host().activate()
    if "llamaindex" not in host().installed:
        host().register(plugin, "llamaindex")
    host().check()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections to anything but this machine fail, and are listed."""
    attempts: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in LOCAL:
            attempts.append(address)
            raise OSError(f"no network in tests: {address}")
        connect(self, address)

    def guarded_look_up(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name not in LOCAL:
            attempts.append(name)
            raise socket.gaierror(f"no network in tests: {name}")
        return look_up(name, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    return attempts
