"""The same decisions as a model written apart from the code, and as Cedar, on random policies and requests."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cedarpy
import oracle
import random_policies as made

from aios_kernel.access import AccessManager, Policy, Subject
from aios_kernel.access.grants import Grant
from aios_kernel.access.policy_file import PolicyText

REQUESTS = 10
SLICE, ALL = 500, 10_000
"""Policies of the default suite and of the slow one; with ten requests each."""


def subjects(chain: oracle.Chain) -> tuple[Subject, ...]:
    return tuple(Subject(*each) for each in chain)


class Decider:
    """The access manager under one random policy after the other."""

    def __init__(self, home: Path) -> None:
        self.access = AccessManager(home / "access.db")

    def under(self, policy: dict[str, Any], grants: list[oracle.Grant]) -> None:
        self.access.policy = Policy(PolicyText(made.toml(policy), "random"))
        self.access.grants._index.clear()
        for to, right, what, giver in grants:
            self.access.grants._remember([Grant(giver[0][0], to, what, right, subjects(giver))])

    def __call__(self, request: made.Request) -> str:
        chain, right, resource, tainted = request
        return self.access.decide(subjects(chain), right, resource, tainted=tainted).effect  # type: ignore[arg-type]


def compare_with_the_model(decider: Decider, policies: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for number in range(policies):
        rng = random.Random(f"{seed}/{number}")
        policy, grants = made.policy(rng), made.distinct(made.grants(rng))
        decider.under(policy, grants)
        for _ in range(REQUESTS):
            request = made.request(rng)
            expected = oracle.decide(policy, grants, *request)
            assert decider(request) == expected, (seed, number, request, made.toml(policy), grants)
            seen[expected] += 1
    return seen


@pytest.fixture
def decider(tmp_path: Path) -> Decider:
    return Decider(tmp_path)


async def test_decisions_are_those_of_the_model(decider: Decider) -> None:
    seen = compare_with_the_model(decider, SLICE, 1)
    assert min(seen[effect] for effect in ("allow", "ask", "deny")) > SLICE * REQUESTS / 50
    await decider.access.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_100_000_decisions_are_those_of_the_model(decider: Decider) -> None:
    assert compare_with_the_model(decider, ALL, 2).total() == 100_000
    await decider.access.close()


# --- Cedar ------------------------------------------------------------------------------------------------------------


def cedar(policy: dict[str, Any]) -> tuple[cedarpy.PolicySet, cedarpy.PolicySet]:
    """The policy as two of Cedar's: who may, and what is asked about."""
    own = "resource.owner == principal.agent || resource.owner == principal.group"
    may = [f"permit(principal, action, resource) when {{ {own} }};"]
    ask: list[str] = []
    for effect, word, texts in (("allow", "permit", may), ("deny", "forbid", may), ("ask", "permit", ask)):
        for rule in policy[effect]:
            texts += [
                f"{word}({who}, action in [{actions(rule)}], resource) when {{ {conditions(rule)} }};"
                for who in ([f'principal in Role::"{role}"' for role in rule.get("roles", [])] or ["principal"])
            ]
    return cedarpy.PolicySet.from_str("\n".join(may)), cedarpy.PolicySet.from_str("\n".join(ask))


def actions(rule: dict[str, Any]) -> str:
    return ", ".join(f'Action::"{right}"' for right in rule["rights"])


def conditions(rule: dict[str, Any]) -> str:
    spelled = [
        each
        for pattern in rule["resources"]
        for each in ([f"memory/{pattern}", f"storage/{pattern}"] if pattern[:6] in ("agent/", "group/") else [pattern])
    ]
    names = " || ".join(
        f'resource.name like "{each}"'
        if each.endswith("*")
        else f'resource.name == "{each}" || resource.name like "{each}/*"'
        for each in spelled
    )
    return f"({names})" + (" && context.tainted" if rule.get("tainted") else "")


def entities(policy: dict[str, Any], subject: oracle.Subject, resource: str) -> cedarpy.Entities:
    parts = resource.split("/")
    owner = f"{parts[1]}/{parts[2]}" if parts[0] in ("memory", "storage") else "nobody"
    owner = f"agent/{parts[1]}" if parts[0] == "job" else owner
    roles = [{"type": "Role", "id": name} for name, role in policy["roles"].items() if oracle.has(role, subject)]
    own = {"agent": "agent/" + subject[2].split("/")[0], "group": f"group/{subject[1]}"}
    return cedarpy.Entities.from_json_str(json.dumps([
        {"uid": {"type": "Run", "id": "r"}, "attrs": own, "parents": roles},
        {"uid": {"type": "Thing", "id": "t"}, "attrs": {"name": resource, "owner": owner}, "parents": []},
    ]))  # fmt: skip


Parsed = tuple[cedarpy.PolicySet, cedarpy.PolicySet]


def by_cedar(policy: dict[str, Any], parsed: Parsed, request: made.Request) -> str:
    may, ask = parsed
    asked = {"principal": 'Run::"r"', "action": f'Action::"{request.right}"', "resource": 'Thing::"t"',
             "context": {"tainted": request.tainted}}  # fmt: skip
    about = entities(policy, request.chain[0], request.resource)
    if not cedarpy.is_authorized(asked, may, about).allowed:
        return "deny"
    return "ask" if cedarpy.is_authorized(asked, ask, about).allowed else "allow"


def compare_with_cedar(decider: Decider, policies: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for number in range(policies):
        rng = random.Random(f"cedar/{seed}/{number}")
        policy = made.policy(rng)
        decider.under(policy, [])
        parsed = cedar(policy)
        for _ in range(REQUESTS):
            request = made.request(rng)
            request = request._replace(chain=request.chain[:1])  # Cedar knows nobody's parents
            expected = by_cedar(policy, parsed, request)
            assert decider(request) == expected, (seed, number, request, made.toml(policy))
            seen[expected] += 1
    return seen


async def test_decisions_are_those_of_cedar(decider: Decider) -> None:
    seen = compare_with_cedar(decider, SLICE // 5, 1)
    assert min(seen[effect] for effect in ("allow", "ask", "deny")) > SLICE // 5 * REQUESTS / 50
    await decider.access.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_100_000_decisions_are_those_of_cedar(decider: Decider) -> None:
    assert compare_with_cedar(decider, ALL, 2).total() == 100_000
    await decider.access.close()
