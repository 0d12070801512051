"""`aios bench attack`: one agent floods, nine want their work done; what do they feel under each policy?

The real kernel in a process of its own, on the fake engine whose steps cost time: a fixed part and one for each token.
Nine agents hold four calls open each until they have made all of theirs, alone (`alone`), beside an agent that queues
1,000 calls at once (`flood`), or beside one prompt of 100,000 tokens (`prompt`). All ten always have something
waiting, so an equal share is the fair one: the Jain index is over prompt tokens plus two for each generated one of
calls that ended while all of them were there.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config
from aios_kernel.syscalls import AgentSpawn, KernelShutdown, LlmChat, LlmResult, Message

POLICIES = ("fifo", "round_robin", "priority", "fair", "program")
_ATTACKS = ("flood", "prompt")
_VICTIMS = 9
_WIDTH = 4
_MODEL = "fake:step_us=1000,token_us=10,max_batch=16,window=131072"
_PROMPT, _ANSWER = 100, 20
_HUGE = 100_000


@dataclass(slots=True)
class Attack:
    """What happened: latencies of the victims, and (when, agent, weighted tokens) of every call that ended."""

    latencies_s: list[float] = field(default_factory=list[float])
    ends: list[tuple[float, str, float]] = field(default_factory=list[tuple[float, str, float]])
    began: float = field(default_factory=time.perf_counter)
    contested: float = 0.0
    """Since when the victims have been there."""
    through: dict[str, float] = field(default_factory=dict[str, float])

    def p99_s(self) -> float:
        """Of the victims' calls."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    def per_s(self) -> float:
        """Weighted tokens a second until everything had ended."""
        return sum(tokens for _, _, tokens in self.ends) / (max(at for at, _, _ in self.ends) - self.began)

    def jain(self, agents: Sequence[str]) -> float:
        """Of what these were given before the first was through."""
        until = min(self.through.values())
        shares = [
            sum(n for at, who, n in self.ends if who == agent and self.contested <= at <= until) for agent in agents
        ]
        return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares)) if any(shares) else 0.0


def run(
    policies: Sequence[str] = POLICIES, calls: int = 60, flood: int = 1000, repeats: int = 1
) -> list[dict[str, Any]]:
    """One row a policy and attack; throughput is relative to that of `fifo` under the same attack.

    With `repeats`, everything is done so often, in turns, and each number is the median.
    """
    measured: dict[tuple[str, str], list[Attack]] = {}
    for _ in range(repeats):
        for policy, kind in itertools.product(dict.fromkeys(("fifo", *policies)), ("alone", *_ATTACKS)):
            with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
                attack = asyncio.run(_attack(Path(home), policy, kind, calls, flood))
            measured.setdefault((policy, kind), []).append(attack)
    return [_row(measured, policy, kind) for policy, kind in itertools.product(policies, _ATTACKS)]


def _row(measured: dict[tuple[str, str], list[Attack]], policy: str, kind: str) -> dict[str, Any]:
    attacks = measured[policy, kind]
    victims = [f"victim{number}" for number in range(_VICTIMS)]
    p99_s, alone_s = (median(a.p99_s() for a in measured[policy, which]) for which in (kind, "alone"))
    per_s, fifo_per_s = (median(a.per_s() for a in measured[which, kind]) for which in (policy, "fifo"))
    everyone = [*victims, "flooder"]
    return {
        "policy": policy,
        "attack": kind,
        "victim_p99_s": p99_s,
        "alone_p99_s": alone_s,
        "p99_ratio": p99_s / alone_s,
        "jain": median(a.jain(everyone) for a in attacks) if kind == "flood" else None,
        "victims_jain": median(a.jain(victims) for a in attacks),
        "tokens_per_s": per_s,
        "fifo_ratio": per_s / fifo_per_s,
        "repeats": len(attacks),
    }


async def _attack(home: Path, policy: str, kind: str, calls: int, flood: int) -> Attack:
    options: dict[str, float | int | str | bool] = {"slots": 16} if policy == "round_robin" else {}
    config = Config(
        home=str(home),
        model=_MODEL,
        policy=policy,
        policy_options=options,
        embedder="hash",
        vectors="exact",
        grace_s=1.0,
    )
    connection = await asyncio.to_thread(connect, config, client="bench")
    client = AsyncClient(connection)
    try:
        for agent in (*(f"victim{number}" for number in range(_VICTIMS)), "flooder"):
            await client.call(AgentSpawn(program=agent, agent=agent))
        attack = Attack()
        flooding: list[asyncio.Task[None]] = []
        if kind != "alone":
            sizes = [_PROMPT] * flood if kind == "flood" else [_HUGE]
            flooding = [asyncio.create_task(_ask(client, attack, "flooder", n, size)) for n, size in enumerate(sizes)]
            await asyncio.sleep(0.2)  # its calls are queued first
        attack.contested = time.perf_counter()
        await asyncio.gather(*(_victim(client, attack, f"victim{number}", calls) for number in range(_VICTIMS)))
        await asyncio.gather(*flooding)
        return attack
    finally:
        await client.call(KernelShutdown())
        await asyncio.to_thread(connection.close)


async def _victim(client: AsyncClient, attack: Attack, agent: str, calls: int) -> None:
    left = iter(range(calls))

    async def loop() -> None:
        for number in left:
            began = time.perf_counter()
            await _ask(client, attack, agent, number, _PROMPT)
            attack.latencies_s.append(time.perf_counter() - began)

    await asyncio.gather(*(loop() for _ in range(_WIDTH)))
    attack.through[agent] = time.perf_counter()


async def _ask(client: AsyncClient, attack: Attack, agent: str, number: int, prompt: int) -> None:
    words = " ".join([agent, str(number), *["word"] * prompt])
    call = LlmChat(messages=[Message(role="user", content=f"{words}\nthink {_ANSWER}")])
    answer = await client.call(call, program=agent)
    assert isinstance(answer, LlmResult)
    usage = answer.usage
    weighted = usage.prompt_tokens - usage.cached_tokens + 2 * usage.completion_tokens
    attack.ends.append((time.perf_counter(), agent, weighted))
