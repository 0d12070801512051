"""`aios bench access`: what one decision costs, by rules and agents, beside Cedar where `cedarpy` is installed.

Every policy has so many rules over ten roles, and so many agents that have one of these each. Cedar gets the same rules
and agents, parsed before; its answer is one of yes and no, without a rule's name, parents, grants or questions.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from aios_kernel.access import AccessManager, Policy, Subject
from aios_kernel.access.grants import Chain, Grant
from aios_kernel.access.policy_file import PolicyText
from aios_kernel.syscalls import Right

SHAPES = ((10, 10), (100, 100), (1_000, 1_000), (10_000, 10_000))
"""Rules and agents."""
_ROLES = 10
_Decide: TypeAlias = Callable[[int], str]
"""Makes the decision of a number, about another agent each."""


def run(decisions: int = 20_000, shapes: Sequence[tuple[int, int]] = SHAPES) -> list[dict[str, Any]]:
    """Rows `{case, rules, agents, decisions, effect, p50_us, p99_us}`.

    `first` is the first decision about each agent after the policy was read, the other cases are of later ones.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        access = AccessManager(Path(folder) / "access.db")
        try:
            for rules, agents in shapes:
                chains = [(_subject(number),) for number in range(agents)]
                asyncio.run(_give(access, agents))
                for case, count, decide in _cases(access, rules, chains, decisions):
                    row = {"case": case, "rules": rules, "agents": agents, "decisions": count}
                    rows.append({**row, **_measured(decide, count, 0 if case == "first" else min(agents, count))})
        finally:
            asyncio.run(access.close())
    return rows


def policy(rules: int) -> str:
    """A file with so many rules: nine in ten allow one tool each, the others deny or ask."""
    lines = [f"[roles.r{role}]\nagents = ['a{role}-*']" for role in range(_ROLES)]
    for number in range(rules):
        effect = "allow" if number % 10 < 8 else "deny" if number % 10 == 8 else "ask"
        star = "*" if number % 3 == 0 else ""
        lines.append(
            f"[[{effect}]]\nroles = ['r{number % _ROLES}', 'r{number * 7 // _ROLES % _ROLES}']\n"
            f"rights = ['call']\nresources = ['tool/{effect}-{number}{star}']"
        )
    everybody = "[[allow]]\nrights = ['call', 'use']\nresources = ['tool/common', 'tool/ask-*', 'model/*']"
    return "\n".join([*lines, everybody])


def _cases(
    access: AccessManager, rules: int, chains: Sequence[Chain], decisions: int
) -> Iterator[tuple[str, int, _Decide]]:
    """The cases, how many decisions of each, and how they are made; each is used up before the next is asked for."""
    agents = len(chains)
    deep = [tuple(_subject(number, "/x" * depth) for depth in (3, 2, 1, 0)) for number in range(agents)]

    def on(right: Right, resource: str, runs: Sequence[Chain] = chains) -> _Decide:
        return lambda number: access.decide(runs[number % len(runs)], right, resource).effect

    access.policy = Policy(PolicyText(policy(rules), "bench"))
    yield "first", agents, on("call", "tool/common")
    own = [f"memory/agent/{chain[0].root}/notes" for chain in chains]
    yield "own space", decisions, lambda n: access.decide(chains[n % agents], "read", own[n % agents]).effect
    yield "foreign space", decisions, on("read", "memory/agent/nobody/notes")
    yield "rule", decisions, on("call", "tool/common")
    yield "pattern", decisions, on("use", "model/some/where")
    yield "question", decisions, on("call", "tool/ask-9-again", chains[9::_ROLES])
    yield "grant", decisions, on("read", "memory/agent/giver/notes/today")
    yield "three parents", decisions, on("call", "tool/common", deep)
    if importlib.util.find_spec("cedarpy") is not None:
        yield "rule, Cedar", max(200, decisions // 20), _cedar(rules, agents)


def _subject(number: int, below: str = "") -> Subject:
    return Subject("u", "g", f"a{number % _ROLES}-{number}{below}", "bench")


async def _give(access: AccessManager, agents: int) -> None:
    """Every agent may read one space by a grant."""
    grants = [
        Grant("u", _subject(number).root, "agent/giver/notes", "read", (Subject("u", "h", "giver"),))
        for number in range(agents)
    ]
    await access.grants.add(grants)


def _measured(decide: _Decide, count: int, warm: int) -> dict[str, Any]:
    taken: list[int] = []
    effect = ""
    gc.collect()
    gc.disable()
    try:
        for number in range(warm):
            decide(number)
        for number in range(count):
            began = time.perf_counter_ns()
            effect = decide(number)
            taken.append(time.perf_counter_ns() - began)
    finally:
        gc.enable()
    taken.sort()
    return {"effect": effect, "p50_us": taken[count // 2] / 1e3, "p99_us": taken[int(0.99 * count)] / 1e3}


def _cedar(rules: int, agents: int) -> _Decide:
    """The same rules and agents in Cedar, parsed; each decision is about another agent."""
    import cedarpy

    roles = [{"type": "Role", "id": f"r{number}"} for number in range(_ROLES)]
    entities = [
        {"uid": {"type": "Run", "id": _subject(n).agent}, "attrs": {}, "parents": [roles[n % _ROLES]]}
        for n in range(agents)
    ]
    thing = {"uid": {"type": "Thing", "id": "t"}, "attrs": {"name": "tool/common"}, "parents": []}
    known = cedarpy.Entities.from_json_str(json.dumps([*entities, thing]))
    parsed = cedarpy.PolicySet.from_str("\n".join(_cedar_rules(PolicyText(policy(rules), "bench"))))
    requests = [
        {"principal": f'Run::"{_subject(n).agent}"', "action": 'Action::"call"', "resource": 'Thing::"t"'}
        for n in range(agents)
    ]

    def decide(number: int) -> str:
        return "allow" if cedarpy.is_authorized(requests[number % agents], parsed, known).allowed else "deny"

    return decide


def _cedar_rules(text: PolicyText) -> Iterator[str]:
    for word, rules in (("permit", text.allow), ("forbid", text.deny)):
        for rule in rules:
            names = " || ".join(
                f'resource.name like "{each}"' if each.endswith("*") else f'resource.name == "{each}"'
                for each in rule.resources
            )
            actions = ", ".join(f'Action::"{right}"' for right in rule.rights)
            for who in [f'principal in Role::"{role}"' for role in rule.roles or []] or ["principal"]:
                yield f"{word}({who}, action in [{actions}], resource) when {{ {names} }};"
