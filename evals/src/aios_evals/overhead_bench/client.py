"""The clients of `aios bench overhead`: asks what comes in a line of JSON, says when all is answered. Nothing else."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config
from aios_kernel.syscalls import AgentSpawn, LlmChat, LlmResult

_calls = msgspec.json.Decoder(list[LlmChat])


async def _serve(home: str, socket: str, clients: int) -> None:
    connection = await asyncio.to_thread(connect, Config(home=home, kernel=socket), client="bench")
    client, programs = AsyncClient(connection), [uuid.uuid4().hex[:16] for _ in range(clients)]
    for place, program in enumerate(programs):
        await client.call(AgentSpawn(program=program, agent=f"client-{place}"))
    _say({})
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(await _ask(client, _calls.decode(line), programs))
    await asyncio.to_thread(connection.close)


async def _ask(client: AsyncClient, calls: Sequence[LlmChat], programs: Sequence[str]) -> dict[str, Any]:
    answers = await asyncio.gather(*(_answer(client, *each) for each in zip(calls, programs, strict=False)))
    return {"tokens": [tokens for tokens, _ in answers], "first_s": [first_s for _, first_s in answers]}


async def _answer(client: AsyncClient, call: LlmChat, program: str) -> tuple[int, float]:
    """Tokens of an answer, and seconds until the first of them was here."""
    began, first_s = time.perf_counter(), 0.0
    async for piece in client.stream(call, program=program):
        first_s = first_s or time.perf_counter() - began
        if isinstance(piece, LlmResult):
            return piece.usage.completion_tokens, first_s
    raise AssertionError("an answer without an end")


def _say(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(**json.loads(sys.argv[1])))
