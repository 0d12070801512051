from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from autogen_ext.models.openai import OpenAIChatCompletionClient

from aios_adapters import host
from aios_adapters.testing import KernelHandle

Until: TypeAlias = Callable[[Callable[[], bool] | str], Awaitable[None]]

LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def adapter() -> None:
    """The adapter, also where the distribution is only on the path and has no entry point."""
    from aios_adapter_autogen import plugin

    host().activate()
    if "autogen" not in host().installed:
        host().register(plugin, "autogen")


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


@pytest.fixture
def until(fake_kernel: KernelHandle) -> Until:
    """Wait, without blocking the loop, until something holds, or until an agent is in one of the given states."""

    async def wait(wanted: Callable[[], bool] | str) -> None:
        def in_state() -> bool:
            return any(row.state == wanted for row in fake_kernel.ps())

        condition = in_state if isinstance(wanted, str) else wanted
        assert await asyncio.to_thread(fake_kernel.wait_for, condition, 30.0), fake_kernel.ps()

    return wait


@pytest.fixture
def client() -> OpenAIChatCompletionClient:
    """The model client of most programs; its key is never used."""
    return OpenAIChatCompletionClient(model="gpt-4o", api_key="unused")
