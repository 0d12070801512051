"""`aios bench overload`: ten times the load that the kernel can take, from callers that heed `Busy` and come again.

The fake engine's steps cost time, so that its capacity is known: `peak` is a closed loop of as many callers as the
kernel takes calls. `overload` has ten times as many; those that are refused wait for `retry_after_s` and call again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config
from aios_kernel.errors import Busy
from aios_kernel.syscalls import KernelShutdown, LlmChat, LlmResult, Message

_MODEL = "fake:step_us=2000,token_us=10,max_batch=16"
_QUEUE = 128


@dataclass(slots=True)
class Load:
    """What the callers saw."""

    answered: int = 0
    refused_s: list[float] = field(default_factory=list[float])
    retry_after_s: list[float] = field(default_factory=list[float])
    lost: int = 0
    """Calls that got neither an answer nor `Busy` with a time."""


def run(seconds: float = 5.0, policy: str = "fifo", factor: int = 10, queue: int = _QUEUE) -> list[dict[str, Any]]:
    """Two rows: `{load, callers, per_s, of_peak, busy, busy_p50_s, busy_p99_s, retry_after_s, lost}`."""
    rows: list[dict[str, Any]] = []
    for name, callers in (("peak", queue // 2), ("overload", queue * factor)):
        with tempfile.TemporaryDirectory(prefix="aios-") as home:
            rows.append(asyncio.run(_measure(Path(home), policy, name, callers, queue, seconds)))
    return [{**row, "of_peak": row["per_s"] / rows[0]["per_s"]} for row in rows]


async def _measure(home: Path, policy: str, name: str, callers: int, queue: int, seconds: float) -> dict[str, Any]:
    config = Config(
        home=str(home),
        model=_MODEL,
        policy=policy,
        max_open_calls=queue,
        embedder="hash",
        vectors="exact",
        grace_s=1.0,
    )
    connection = await asyncio.to_thread(connect, config, client="bench")
    client, load = AsyncClient(connection), Load()
    ends_at = time.perf_counter() + seconds
    await asyncio.gather(*(_caller(client, load, ends_at) for _ in range(callers)))
    took = seconds + max(0.0, time.perf_counter() - ends_at)
    await client.call(KernelShutdown())
    await asyncio.to_thread(connection.close)
    return {
        "load": name,
        "callers": callers,
        "per_s": load.answered / took,
        "of_peak": 1.0,
        "busy": len(load.refused_s),
        "busy_p50_s": _quantile(load.refused_s, 0.5),
        "busy_p99_s": _quantile(load.refused_s, 0.99),
        "retry_after_s": sum(load.retry_after_s) / len(load.retry_after_s) if load.retry_after_s else None,
        "lost": load.lost,
    }


async def _caller(client: AsyncClient, load: Load, ends_at: float) -> None:
    call = LlmChat(messages=[Message(role="user", content="think 20")])
    while (began := time.perf_counter()) < ends_at:
        try:
            answer = await client.call(call)
        except Busy as busy:
            load.refused_s.append(time.perf_counter() - began)
            if busy.retry_after_s is None:
                load.lost += 1
                return
            load.retry_after_s.append(busy.retry_after_s)
            if time.perf_counter() + busy.retry_after_s > ends_at:
                return  # the measurement is over by then
            await asyncio.sleep(busy.retry_after_s)
        else:
            load.answered += isinstance(answer, LlmResult)


def _quantile(values: list[float], share: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None
