"""The adapter in place, no key in the environment, no network."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from aios_adapters import host

LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def adapter() -> None:
    """The adapters, also where the distributions are only on the path and have no entry points."""
    from aios_adapter_langchain import plugin
    from aios_adapter_openai import plugin as openai_plugin

    host().activate()
    for name, module in {"langchain": plugin, "openai": openai_plugin}.items():
        if name not in host().installed:
            host().register(module, name)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials anywhere, and no tracing to anywhere."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "LANGSMITH_API_KEY", "LANGCHAIN_TRACING_V2"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def network_attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
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


@pytest.fixture
def model(adapter: None) -> ChatOpenAI:
    """The model of most programs, without a key."""
    return ChatOpenAI(model="gpt-4o")
