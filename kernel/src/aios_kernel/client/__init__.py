"""Clients of the kernel: blocking and asyncio, over one connection a process. Standard library and msgspec only."""

from aios_kernel.client._async import AsyncClient
from aios_kernel.client._blocking import Client
from aios_kernel.client._connection import Connection
from aios_kernel.client._launch import (
    connect,
    kernel_command,
    kernel_environment,
    kernel_input,
    stop_in_process,
    wait_until_free,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Connection",
    "connect",
    "kernel_command",
    "kernel_environment",
    "kernel_input",
    "stop_in_process",
    "wait_until_free",
]
