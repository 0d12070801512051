"""`aios bench syscalls`: what an LLM syscall costs when the model costs nothing, beside a bare echo.

The kernel (fake engine, two-word answers) and the echo (asyncio, length-prefixed msgpack, the peer) each run in a
process of their own behind a unix socket. Clients are asyncio tasks of one process, each with one call open at a time,
over the product's own client; the echo's clients send and await the same frames without any of our code in between.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aios_kernel.client import AsyncClient, Connection, connect
from aios_kernel.config import Config
from aios_kernel.syscalls import KernelShutdown, LlmChat, LlmResult, Message

CLIENTS = (1, 8, 64, 256)
_CALL = LlmChat(messages=[Message(role="user", content="say all right")])


@dataclass(frozen=True, slots=True)
class Load:
    """What one closed-loop run measured; CPU is of both processes together."""

    latencies_s: list[float]
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Calls a second."""
        return len(self.latencies_s) / self.wall_s

    @property
    def cpu_us(self) -> float:
        """CPU of a call in microseconds."""
        return self.cpu_s / len(self.latencies_s) * 1e6

    def quantile_us(self, share: float) -> float:
        """A latency quantile in microseconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6


def run(seconds: float = 2.0, clients: Sequence[int] = CLIENTS) -> list[dict[str, float | int]]:
    """One row a number of clients: `{clients, p50_us, p99_us, per_s, cpu_us, echo_ratio}`."""
    with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
        return asyncio.run(_run(Path(home), seconds, clients))


async def _run(home: Path, seconds: float, clients: Sequence[int]) -> list[dict[str, float | int]]:
    config = Config(home=str(home / "kernel"), model="fake", embedder="hash", vectors="exact", grace_s=1.0)
    connection = await asyncio.to_thread(connect, config, client="bench")
    echo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aios_evals.echo", str(home / "echo.sock"), stdout=asyncio.subprocess.PIPE
    )
    assert echo.stdout is not None
    await echo.stdout.readline()
    rows: list[dict[str, float | int]] = []
    try:
        for count in clients:
            peer = await _echo_load(home / "echo.sock", echo.pid, count, seconds)
            ours = await _kernel_load(connection, count, seconds)
            rows.append(_row(count, ours, peer))
        await AsyncClient(connection).call(KernelShutdown())
    finally:
        connection.close()
        echo.terminate()
        await echo.wait()
    return rows


def _row(clients: int, ours: Load, peer: Load) -> dict[str, float | int]:
    return {
        "clients": clients,
        "p50_us": round(ours.quantile_us(0.5), 1),
        "p99_us": round(ours.quantile_us(0.99), 1),
        "per_s": round(ours.per_s, 1),
        "cpu_us": round(ours.cpu_us, 1),
        "echo_ratio": round(ours.cpu_us / peer.cpu_us, 2),
        "echo_p50_us": round(peer.quantile_us(0.5), 1),
        "echo_per_s": round(peer.per_s, 1),
        "echo_cpu_us": round(peer.cpu_us, 1),
    }


async def _kernel_load(connection: Connection, clients: int, seconds: float) -> Load:
    client = AsyncClient(connection)

    async def call() -> None:
        answer = await client.call(_CALL)
        assert isinstance(answer, LlmResult)
        assert answer.text == "all right"

    return await _closed_loop([call] * clients, connection.welcome.pid, seconds)


async def _echo_load(path: Path, pid: int, clients: int, seconds: float) -> Load:
    frame = msgspec.msgpack.encode(_CALL)
    message = len(frame).to_bytes(4, "big") + frame
    streams = [await asyncio.open_unix_connection(str(path)) for _ in range(clients)]

    def caller(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            writer.write(message)
            size = int.from_bytes(await reader.readexactly(4), "big")
            msgspec.msgpack.decode(await reader.readexactly(size), type=LlmChat)

        return call

    load = await _closed_loop([caller(*stream) for stream in streams], pid, seconds)
    for _, writer in streams:
        writer.close()
    return load


async def _closed_loop(calls: Sequence[Callable[[], Awaitable[None]]], server_pid: int, seconds: float) -> Load:
    """Every caller calls, waits, calls again, until the time is over; the first tenth is warm-up and not counted."""
    latencies: list[float] = []

    async def loop(call: Callable[[], Awaitable[None]], ends_at: float, counted: bool) -> None:
        while (began := time.perf_counter()) < ends_at:
            await call()
            if counted:
                latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(loop(call, time.perf_counter() + seconds / 10, False) for call in calls))
    cpu, began = _cpu_s(server_pid), time.perf_counter()
    await asyncio.gather(*(loop(call, began + seconds, True) for call in calls))
    return Load(latencies, time.perf_counter() - began, _cpu_s(server_pid) - cpu)


def _cpu_s(server_pid: int) -> float:
    """CPU seconds so far of this process and the server's (Linux: proc(5), fields utime and stime)."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    fields = Path(f"/proc/{server_pid}/stat").read_text().rpartition(")")[2].split()
    return own.ru_utime + own.ru_stime + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
