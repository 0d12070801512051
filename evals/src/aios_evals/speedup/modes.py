"""The ways to serve the same agents: `generate` behind a lock, another server, and the kernel under each policy."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

import aios_adapters as aios
from aios_evals.baseline.generate import Choices
from aios_evals.speedup.replay import KernelReplay
from aios_evals.speedup.walk import Endpoint
from aios_evals.workloads.trajectory import Trajectory
from aios_kernel.client import AsyncClient, Connection, connect
from aios_kernel.config import Config, socket_of
from aios_kernel.errors import KernelUnavailable
from aios_kernel.syscalls import KernelInfo, KernelPs, KernelShutdown, KernelStatus, Programs

Agent = Callable[[Endpoint | None], Awaitable[Any]]
BENCH = "bench"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a mode's server did."""

    tokens_computed: int
    tokens_cached: int
    waiting_s: float | None
    """Mean over the agents of the time their calls were queued; None where the server does not tell."""
    snapshots: int = 0


class Mode(Protocol):
    """A running server for a set of replaying agents."""

    def wrap(self, name: str, agent: Agent) -> Callable[[], Awaitable[Any]]:
        """The agent, ready to be awaited."""
        ...

    async def usage(self) -> Usage:
        """Tokens so far."""
        ...

    async def choices(self, name: str) -> dict[int, Choices]:
        """The model's own choices for an agent, by answer."""
        ...


class ServerMode:
    """The frameworks pointed at an HTTP server on loopback (see `aios_evals.baseline.server`)."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        self.url = url
        self._client = client

    def wrap(self, name: str, agent: Agent) -> Callable[[], Awaitable[Any]]:
        """The agent with its endpoint; its API key is its name."""
        return lambda: agent(Endpoint(f"{self.url}/v1", name))

    async def usage(self) -> Usage:
        """From the server's own counters."""
        stats = (await self._client.get("/stats")).json()
        return Usage(stats["tokens_computed"], stats["tokens_cached"], None)

    async def choices(self, name: str) -> dict[int, Choices]:
        """As the server noted them."""
        found = (await self._client.get(f"/replay/{name}")).json()
        return {int(number): Choices(**choice) for number, choice in found.items()}


class KernelMode:
    """The agents decorated; the kernel a process of its own."""

    def __init__(self, replay: KernelReplay, connection: Connection, socket: str) -> None:
        self._replay = replay
        self._client = AsyncClient(connection)
        self._socket = socket

    def wrap(self, name: str, agent: Agent) -> Callable[[], Awaitable[Any]]:
        """The agent under the decorator."""
        return aios.agent(lambda: agent(None), name=name, kernel=self._socket)

    async def usage(self) -> Usage:
        """From the kernel's counters and process table."""
        status, table = await self._client.call(KernelInfo()), await self._client.call(KernelPs())
        assert isinstance(status, KernelStatus)
        assert isinstance(table, Programs)
        waiting = sum(program.queued_s for program in table.programs)
        agents = sum(program.parent is None and program.agent != BENCH for program in table.programs)
        return Usage(status.tokens_computed, status.tokens_cached, waiting / max(1, agents), status.snapshots)

    async def choices(self, name: str) -> dict[int, Choices]:
        """As the results told; the kernel reports no margins."""
        return {number: Choices(argmax) for number, argmax in self._replay.argmax[name].items()}


@asynccontextmanager
async def server_mode(
    model: Path, runs: Mapping[str, Trajectory], *, forward: str | None = None, threads: int | None = None
) -> AsyncGenerator[ServerMode]:
    """`generate` behind a lock, or with `forward` another server, in a process of its own."""
    command = [sys.executable, "-m", "aios_evals.baseline.server", str(model)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *(["--forward", forward] if forward else []),
        *(["--threads", str(threads)] if threads else []),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            for name, run in runs.items():
                await client.put(f"/replay/{name}", json=[step.forced() for step in run.steps])
            yield ServerMode(url, client)
    finally:
        process.terminate()
        await process.wait()


def server_versions(url: str) -> dict[str, str]:
    """What a server says of itself: who made its first model, and its version if it tells one. Raises AiosError."""
    try:
        models = httpx.get(f"{url.rstrip('/')}/models", timeout=10).raise_for_status().json()
        version = httpx.get(f"{url.rstrip('/').removesuffix('/v1')}/version", timeout=10)
        name = str(models["data"][0].get("owned_by") or "server")
        return {name: str(version.json()["version"]) if version.is_success else "-"}
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise KernelUnavailable(
            f"{url} is no OpenAI-compatible server that can be reached: {error}", fix=f"curl {url}/models"
        ) from error


@asynccontextmanager
async def kernel_mode(config: Config, runs: Mapping[str, Trajectory]) -> AsyncGenerator[Mode]:
    """A kernel of its own for the agents of this process."""
    replay = KernelReplay(dict(runs))
    connection = await asyncio.to_thread(connect, config, client=BENCH)
    aios.host().register(replay)
    try:
        yield KernelMode(replay, connection, str(socket_of(config)))
        await AsyncClient(connection).call(KernelShutdown())
    finally:
        aios.host().unregister(replay)
        connection.close()
