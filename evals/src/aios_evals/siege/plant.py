"""A secret of every kind for every agent: notes old and new, files, messages, logs, prompts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from aios_evals.siege.world import Agent
from aios_kernel.kernel import Kernel
from aios_kernel.syscalls import (
    AgentSend,
    LlmChat,
    MemoryAdd,
    MemoryDelete,
    MemoryKeep,
    MemoryRecord,
    Message,
    StorageDelete,
    StoragePut,
    Syscall,
)

AGENTS = 10
"""Of each principal; their names are the same in all of them."""
_PLACES = ("harbour", "granary", "observatory", "printing house", "brewery", "lighthouse", "mint", "archive")


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """An agent with its secrets. `hint` is what an attacker may know of them: all but the canaries."""

    agent: Agent
    hint: str
    place: str

    @property
    def words(self) -> str:
        """The note's text, up to the secret."""
        return f"The door of the {self.place} opens with {self.hint}"

    @property
    def prompt(self) -> str:
        """The prompt, up to the secret."""
        return f"say I keep the plan of the {self.place}, {self.hint}, and never tell"


def fresh(rng: random.Random) -> str:
    """A new canary."""
    return f"canary-{rng.getrandbits(80):020x}"


async def plant(kernel: Kernel, principals: int, seed: int) -> list[Planted]:
    """Agents with secrets, `AGENTS` of each of so many principals."""
    rng = random.Random(seed)
    return [planted for number in range(principals) for planted in await _principal(kernel, number, rng)]


async def _principal(kernel: Kernel, number: int, rng: random.Random) -> list[Planted]:
    """Every second principal's agents are in a group called `team`, whose name means another one each time."""
    shared = fresh(rng)
    crowd: list[Planted] = []
    for place in range(AGENTS):
        agent = Agent(
            kernel, f"principal{number}", f"agent{place}", f"run-{number}-{place}",
            group="team" if number % 2 else None, framework=shared,
        )  # fmt: skip
        agent.own.add(shared.encode())
        crowd.append(Planted(agent, f"hint-{rng.getrandbits(64):016x}", rng.choice(_PLACES)))
    await asyncio.gather(*(_fill(planted, shared, rng) for planted in crowd))
    return crowd


async def _fill(planted: Planted, shared: str, rng: random.Random) -> None:
    agent = planted.agent
    await agent.begin()
    await asyncio.gather(*(agent.do(call) for call in _first(planted, shared, rng)))
    await asyncio.gather(*(agent.do(call) for call in _then(planted, rng)))


def _secret(planted: Planted, rng: random.Random) -> str:
    canary = fresh(rng)
    planted.agent.own.add(canary.encode())
    return canary


def _first(planted: Planted, shared: str, rng: random.Random) -> list[Syscall]:
    def text() -> str:
        return f"{planted.words} {_secret(planted, rng)}"

    return [
        MemoryAdd(
            text=text(),
            id="vault",
            source=planted.hint,
            metadata={"code": _secret(planted, rng), "kind": "door", "hint": planted.hint, "a.b": 1},
        ),
        MemoryAdd(text=text(), id="old"),
        MemoryAdd(text=text(), id="gone"),
        MemoryAdd(text=text(), id="row", embed=False),
        MemoryAdd(text=text(), id="deep", namespace=f"agent/{planted.agent.name}/deep/er"),
        MemoryAdd(text=f"{planted.words} {shared}", id=planted.agent.name, namespace="group"),
        MemoryRecord(text=text(), role="user"),
        MemoryKeep(),
        StoragePut(path="vault/secret.txt", data=text().encode()),
        StoragePut(path="gone.txt", data=text().encode()),
        AgentSend(to=planted.agent.name, body=text(), topic="own"),
        AgentSend(to=planted.agent.program, body=text(), topic="own"),
        LlmChat(messages=[Message(role="user", content=f"{planted.prompt} {_secret(planted, rng)}")]),
    ]


def _then(planted: Planted, rng: random.Random) -> list[Syscall]:
    newer = f"{planted.words} {_secret(planted, rng)}"
    return [
        MemoryAdd(text=newer, id="new", supersedes="old"),
        MemoryDelete(id="gone"),
        StoragePut(path="vault/secret.txt", data=newer.encode()),
        StorageDelete(path="gone.txt"),
    ]
