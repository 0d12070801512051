"""`aios bench overload`: ten times the load that the kernel can take, from callers that heed `Busy` and come again.

The fake engine's steps cost time, so that its capacity is known: `peak` is a closed loop of half as many callers as the
kernel takes calls. `overload` has ten times as many as it takes, who come within a second; those that are refused wait
for `retry_after_s` and call again. `burst` sends that many calls in one instant, from a plain socket: how long until
the last one knows? (Of callers in one Python process, each waits for the others' turns there.)
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from aios_kernel import frames
from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config, socket_of, token_file_of
from aios_kernel.errors import Busy, KernelUnavailable
from aios_kernel.syscalls import ABI_VERSION, Failed, Hello, KernelShutdown, LlmChat, LlmResult, Message, Request

_MODEL = "fake:step_us=2000,token_us=10,max_batch=16"
_QUEUE = 128
_ARRIVE_S = 1.0
_RECEIVE_BYTES = 1 << 20
_PATIENCE_S = 60.0
_CALL = LlmChat(messages=[Message(role="user", content="think 20")])


@dataclass(slots=True)
class Load:
    """What the callers saw."""

    answered: int = 0
    refused_s: list[float] = field(default_factory=list[float])
    retry_after_s: list[float] = field(default_factory=list[float])
    lost: int = 0
    """Calls that got neither an answer nor `Busy` with a time."""


def run(seconds: float = 5.0, policy: str = "fifo", factor: int = 10, queue: int = _QUEUE) -> list[dict[str, Any]]:
    """Three rows: `{load, callers, per_s, of_peak, busy, busy_p50_s, busy_p99_s, retry_after_s, lost}`."""
    rows: list[dict[str, Any]] = []
    for name, callers in (("peak", queue // 2), ("overload", queue * factor), ("burst", queue * factor)):
        with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
            config = Config(
                home=home,
                model=_MODEL,
                policy=policy,
                max_open_calls=queue,
                embedder="hash",
                vectors="exact",
                grace_s=1.0,
            )
            load, took = asyncio.run(_measure(config, callers, None if name == "burst" else seconds))
            rows.append(_row(name, callers, load, took))
    return [{**row, "of_peak": row["per_s"] / rows[0]["per_s"]} for row in rows]


def _row(name: str, callers: int, load: Load, took_s: float) -> dict[str, Any]:
    return {
        "load": name,
        "callers": callers,
        "per_s": load.answered / took_s,
        "of_peak": 1.0,
        "busy": len(load.refused_s),
        "busy_p50_s": _quantile(load.refused_s, 0.5),
        "busy_p99_s": _quantile(load.refused_s, 0.99),
        "retry_after_s": sum(load.retry_after_s) / len(load.retry_after_s) if load.retry_after_s else None,
        "lost": load.lost,
    }


async def _measure(config: Config, callers: int, seconds: float | None) -> tuple[Load, float]:
    """What so many callers see for some seconds, or in one instant (None), and how long it took."""
    connection = await asyncio.to_thread(connect, config, client="bench")
    client = AsyncClient(connection)
    try:
        if seconds is None:
            return await asyncio.to_thread(_burst, config, callers)
        return await _callers(client, callers, seconds)
    finally:
        await client.call(KernelShutdown())
        await asyncio.to_thread(connection.close)


async def _callers(client: AsyncClient, callers: int, seconds: float) -> tuple[Load, float]:
    """Callers that begin one after the other; gives what they saw and how long it took."""
    load, began = Load(), time.perf_counter()
    ends_at = began + seconds
    await asyncio.gather(*(_caller(client, load, _ARRIVE_S * n / callers, ends_at) for n in range(callers)))
    return load, max(seconds, time.perf_counter() - began)


async def _caller(client: AsyncClient, load: Load, delay_s: float, ends_at: float) -> None:
    await asyncio.sleep(delay_s)
    while (began := time.perf_counter()) < ends_at:
        try:
            answer = await client.call(_CALL)
        except Busy as busy:
            _refused(load, time.perf_counter() - began, busy.retry_after_s)
            if busy.retry_after_s is None or time.perf_counter() + busy.retry_after_s > ends_at:
                return  # the measurement is over by then
            await asyncio.sleep(busy.retry_after_s)
        else:
            load.answered += isinstance(answer, LlmResult)


def _burst(config: Config, calls: int) -> tuple[Load, float]:
    """So many calls in one instant; gives when each answer arrived and when the last did."""
    load, reader = Load(), frames.kernel_frames()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE_S)
        sock.connect(str(socket_of(config)))
        sock.sendall(frames.encode(Hello(version=ABI_VERSION, token=token_file_of(config).read_text(), client="burst")))
        assert [*reader.feed(sock.recv(_RECEIVE_BYTES))], "no welcome"
        data = b"".join(frames.encode(Request(id=number, call=_CALL)) for number in range(1, calls + 1))
        began = time.perf_counter()
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        while load.answered + len(load.refused_s) + load.lost < calls:
            arrived, at_s = sock.recv(_RECEIVE_BYTES), time.perf_counter() - began
            if not arrived:
                raise KernelUnavailable("the kernel hung up during the burst", fix="aios doctor")
            for frame in reader.feed(arrived):
                if not isinstance(frame, Failed):
                    load.answered += 1
                elif frame.code == Busy.code:
                    _refused(load, at_s, frame.retry_after_s)
                else:
                    load.lost += 1
        sender.join()
        return load, time.perf_counter() - began


def _refused(load: Load, after_s: float, retry_after_s: float | None) -> None:
    load.refused_s.append(after_s)
    if retry_after_s is None:
        load.lost += 1
    else:
        load.retry_after_s.append(retry_after_s)


def _quantile(values: list[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None
