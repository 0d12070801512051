"""`aios bench canaries`: agents of many principals look for one another's secrets; how many do they find?

Every agent has a canary in each of its notes (current, superseded, deleted, unsearchable), files and their versions,
messages, interaction log and prompts; every principal one that its agents may all see. Attackers ask in all the ways of
`queries`, while others grant and revoke rights. A result is the answer to one syscall, whole, bytes of files included;
a canary in it is foreign when it is neither the agent's own nor was granted to it at any moment of the call.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from aios_evals.siege.leases import Leases
from aios_evals.siege.plant import AGENTS, Planted, plant
from aios_evals.siege.queries import ATTACKS, DESTRUCTIVE, as_another
from aios_evals.siege.world import Answer, canaries_in, quick
from aios_kernel.kernel import Kernel
from aios_kernel.server.runtime import running_kernel
from aios_kernel.syscalls import (
    AccessGrant,
    AccessRevoke,
    Done,
    Failed,
    FileData,
    MemoryGet,
    MemorySearch,
    Note,
    StorageGet,
    Syscall,
)

_WIDTH = 48
"""Attackers at work at a time."""
_GRANTERS = 4
_PAUSE_S = 0.1
"""Of a granter between two grants: most results should be the attackers'."""


@dataclass(slots=True)
class Siege:
    """What was tried and what came out, by kind of attack."""

    results: Counter[str] = field(default_factory=Counter[str])
    items: Counter[str] = field(default_factory=Counter[str])
    """Notes, files, records and the like inside the results."""
    refused: Counter[str] = field(default_factory=Counter[str])
    foreign: Counter[str] = field(default_factory=Counter[str])
    leaks: list[str] = field(default_factory=list[str])
    """The first of them, in words."""
    granted: int = 0
    """Canaries of others that were seen under a grant: the check is not blind."""
    broken: int = 0
    """Calls of owners that failed although nothing of theirs was wrong: others have harmed them."""
    lost: int = 0
    """Secrets that their owners did not find as they were."""
    seconds: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """A row a kind of attack, and one for all together."""
        counts = (self.results, self.items, self.refused, self.foreign)
        rows = {kind: [counted[kind] for counted in counts] for kind in sorted(self.results)}
        rows["total"] = [counted.total() for counted in counts]
        names = ("results", "items", "refused", "foreign_canaries")
        return [{"attack": kind, **dict(zip(names, row, strict=True))} for kind, row in rows.items()]

    def take(self, kind: str, call: Syscall, answer: Answer, foreign: set[bytes]) -> None:
        """Book a result."""
        self.results[kind] += 1
        self.refused[kind] += isinstance(answer, Failed)
        self.items[kind] += _items(answer)
        self.foreign[kind] += len(foreign)
        if foreign and len(self.leaks) < 20:
            self.leaks.append(f"{kind}: {call} gave {len(foreign)}")


def _items(answer: Answer) -> int:
    if isinstance(answer, Failed):
        return 0
    fields = msgspec.structs.asdict(answer.result).values()
    return max((len(value) for value in fields if isinstance(value, list)), default=1)


async def siege(kernel: Kernel, results: int, principals: int, seed: int = 0) -> Siege:
    """Plant, attack until so many results have come in, and see what the owners have left."""
    crowd = await plant(kernel, principals, seed)
    outcome, leases, rng = Siege(), Leases(), random.Random(seed)
    began = time.perf_counter()
    ended = asyncio.Event()
    granting = [
        asyncio.create_task(_grant(crowd[place::_GRANTERS], crowd, rng, leases, outcome, ended))
        for place in range(_GRANTERS)
    ]
    try:
        await asyncio.gather(*(_attack(crowd, rng, leases, outcome, results) for _ in range(_WIDTH)))
    finally:
        ended.set()
        await asyncio.gather(*granting)
    outcome.seconds = time.perf_counter() - began
    outcome.lost = sum(await asyncio.gather(*(_lost(planted) for planted in crowd)))
    return outcome


async def _attack(crowd: list[Planted], rng: random.Random, leases: Leases, outcome: Siege, results: int) -> None:
    kinds, weights = [*ATTACKS], [weight for weight, _ in ATTACKS.values()]
    while outcome.results.total() < results:
        attacker, victim = rng.choice(crowd), rng.choice(crowd)
        if attacker is victim:
            continue
        kind = rng.choices(kinds, weights)[0]
        if kind in DESTRUCTIVE and attacker.agent.name == victim.agent.name:
            continue  # it would name, and destroy, what is its own
        call, program = ATTACKS[kind][1](rng, attacker, victim), None
        if attacker.agent.principal != victim.agent.principal and rng.random() < 0.1:
            kind, (call, program) = "programs", as_another(rng, attacker, victim)
        await _ask(attacker, kind, call, program, leases, outcome)


async def _ask(
    attacker: Planted, kind: str, call: Syscall, program: str | None, leases: Leases, outcome: Siege
) -> None:
    began = leases.now()
    answer = await attacker.agent.ask(call, program)
    found = canaries_in(answer)
    others = found - attacker.agent.own
    granted = leases.seen_by(attacker.agent, began, leases.now()) if others else set[bytes]()
    outcome.granted += len(others & granted)
    outcome.take(kind, call, answer, others - granted)


async def _grant(
    owners: list[Planted],
    crowd: list[Planted],
    rng: random.Random,
    leases: Leases,
    outcome: Siege,
    ended: asyncio.Event,
) -> None:
    """Give a neighbour a right, let it read, take the right back; from that answer on it must see nothing."""
    while not ended.is_set():
        owner, to = rng.choice(owners), rng.choice(crowd)
        if owner is to or owner.agent.principal != to.agent.principal:
            continue
        space = f"agent/{owner.agent.name}"
        leases.begin(owner.agent, to.agent)
        if isinstance(await owner.agent.ask(AccessGrant(to=to.agent.name, resource=space, rights=["read"])), Failed):
            outcome.broken += 1
            leases.end(owner.agent, to.agent)
            continue
        looks: list[Syscall] = [
            MemoryGet(id="vault", namespace=space),
            StorageGet(path="vault/secret.txt", owner=space),
            MemorySearch(query=owner.words, namespace=space),
            MemorySearch(query=owner.words, namespace="all", k=50),
        ]
        racing = [asyncio.create_task(_ask(to, "granted", look, None, leases, outcome)) for look in looks]
        await asyncio.sleep(0)
        taken = await owner.agent.ask(AccessRevoke(to=to.agent.name, resource=space, rights=["read"]))
        outcome.broken += isinstance(taken, Failed)
        leases.end(owner.agent, to.agent)
        for look in looks:
            await _ask(to, "revoked", look, None, leases, outcome)
        await asyncio.gather(*racing)
        await asyncio.sleep(_PAUSE_S)


async def _lost(planted: Planted) -> int:
    """How many of an agent's secrets are no longer what it wrote."""
    answers = [
        await planted.agent.ask(call)
        for call in (MemoryGet(id="vault"), MemoryGet(id="new"), StorageGet(path="vault/secret.txt"))
    ]
    kept = [
        answer.result.text if isinstance(answer.result, Note) else answer.result.data.decode()
        for answer in answers
        if isinstance(answer, Done) and isinstance(answer.result, Note | FileData)
    ]
    return len(answers) - sum(text.startswith(planted.words) for text in kept)


def run(results: int, principals: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a siege on a kernel of its own, and notes."""

    async def besiege() -> Siege:
        with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
            async with running_kernel(quick(Path(home))) as kernel:
                return await siege(kernel, results, principals, seed)

    outcome = asyncio.run(besiege())
    rows = outcome.rows()
    notes = [
        f"{principals * AGENTS:,} agents of {principals:,} principals, {outcome.seconds:.0f} s; {outcome.granted:,} "
        f"canaries of others were seen while granted; {outcome.lost} secrets were not as their owners left them",
        *outcome.leaks,
    ]
    return rows, notes
