"""What holds for every policy: default deny, denial wins, order means nothing, nothing is gained by spawn or grant."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import oracle
import random_policies as made

from aios_kernel.access import AccessManager, Policy, Subject
from aios_kernel.access.grants import Chain, Grant
from aios_kernel.access.policy_file import PolicyText
from aios_kernel.errors import AccessDenied

RANK = {"deny": 0, "ask": 1, "allow": 2}
SEEDS = st.integers(0, 2**48)
PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def access(tmp_path: Path) -> Generator[AccessManager]:
    manager = AccessManager(tmp_path / "access.db")
    yield manager
    asyncio.run(manager.close())


def chain_of(chain: oracle.Chain) -> Chain:
    return tuple(Subject(*each) for each in chain)


def under(access: AccessManager, policy: dict[str, Any], grants: list[oracle.Grant]) -> None:
    access.policy = Policy(PolicyText(made.toml(policy), "random"))
    access.grants._index.clear()
    for to, right, what, giver in grants:
        access.grants._remember([Grant(giver[0][0], to, what, right, chain_of(giver))])


def rank(access: AccessManager, request: made.Request) -> int:
    chain, right, resource, tainted = request
    return RANK[access.decide(chain_of(chain), right, resource, tainted=tainted).effect]  # type: ignore[arg-type]


def requests(rng: random.Random) -> list[made.Request]:
    return [made.request(rng) for _ in range(20)]


@PROPERTY
@given(seed=SEEDS)
def test_without_rules_there_is_nothing_but_ones_own_spaces(access: AccessManager, seed: int) -> None:
    under(access, {"roles": {}, "allow": [], "deny": [], "ask": []}, [])
    for request in requests(random.Random(seed)):
        assert (rank(access, request) == 2) == all(oracle.owns(each, request.resource) for each in request.chain)


@PROPERTY
@given(seed=SEEDS)
def test_a_denial_wins_over_rules_grants_and_ownership(access: AccessManager, seed: int) -> None:
    rng = random.Random(seed)
    policy, grants = made.policy(rng), made.distinct(made.grants(rng))
    for request in requests(rng):
        denial = {"rights": [request.right], "resources": [request.resource]}
        under(access, policy | {"deny": [denial, *policy["deny"]]}, grants)
        assert rank(access, request) == 0


@PROPERTY
@given(seed=SEEDS)
def test_the_order_of_rules_roles_and_lists_means_nothing(access: AccessManager, seed: int) -> None:
    rng = random.Random(seed)
    policy, grants = made.policy(rng), made.distinct(made.grants(rng))
    asked = requests(rng)
    under(access, policy, grants)
    before = [rank(access, request) for request in asked]
    roles = list(policy["roles"].items())
    rng.shuffle(roles)
    shuffled: dict[str, Any] = {"roles": dict(roles)}
    for effect in ("allow", "deny", "ask"):
        rules = [
            {**rule, "resources": rng.sample(rule["resources"], len(rule["resources"]))} for rule in policy[effect]
        ]
        shuffled[effect] = rng.sample(rules, len(rules))
    under(access, shuffled, rng.sample(grants, len(grants)))
    assert [rank(access, request) for request in asked] == before


@PROPERTY
@given(seed=SEEDS)
def test_taking_away_gives_nothing(access: AccessManager, seed: int) -> None:
    rng = random.Random(seed)
    policy, grants = made.policy(rng), made.distinct(made.grants(rng))
    asked = requests(rng)
    under(access, policy, grants)
    before = [rank(access, request) for request in asked]
    for number in range(len(policy["allow"])):
        fewer = [rule for place, rule in enumerate(policy["allow"]) if place != number]
        under(access, policy | {"allow": fewer}, grants)
        assert all(rank(access, request) <= old for request, old in zip(asked, before, strict=True))
    for number in range(len(grants)):
        under(access, policy, [grant for place, grant in enumerate(grants) if place != number])
        assert all(rank(access, request) <= old for request, old in zip(asked, before, strict=True))


@PROPERTY
@given(seed=SEEDS)
def test_taint_and_questions_only_take_away(access: AccessManager, seed: int) -> None:
    rng = random.Random(seed)
    policy, grants = made.policy(rng), made.distinct(made.grants(rng))
    asked = requests(rng)
    under(access, policy, grants)
    for request in asked:
        assert rank(access, request._replace(tainted=True)) <= rank(access, request._replace(tainted=False))
    before = [rank(access, request) for request in asked]
    under(access, policy | {"ask": []}, grants)
    for request, old in zip(asked, before, strict=True):
        assert (rank(access, request) == 0) <= (old == 0)


@PROPERTY
@given(seed=SEEDS)
def test_nothing_is_gained_by_spawning(access: AccessManager, seed: int) -> None:
    rng = random.Random(seed)
    under(access, policy := made.policy(rng), grants := made.grants(rng))
    for request in requests(rng):
        parent = request._replace(chain=request.chain[-1:])
        if rank(access, request) <= rank(access, parent):
            continue
        # More than the parent itself: only a space, or jobs, of somebody as whom the parent may run.
        parts = request.resource.split("/")
        assert parts[0] in ("memory", "storage", "job")
        who = f"agent/{parts[1]}" if parts[0] == "job" else f"{parts[1]}/{parts[2]}"
        owner = parent._replace(right="spawn", resource=f"spawn/{who}", tainted=False)
        assert oracle.alone(policy, [], owner.chain[0], "spawn", owner.resource, False) == "allow", grants


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS)
def test_nothing_is_gained_by_granting(access: AccessManager, seed: int) -> None:
    rng = random.Random(seed)
    policy = made.policy(rng)
    under(access, policy, made.grants(rng))
    giver = made.chain(rng)
    asked = [request._replace(tainted=False) for request in requests(rng)]
    for request in asked:
        to = rng.choice(made.NAMES)
        grantee = ((giver[0][0], "g", to, ""),)
        before = rank(access, request._replace(chain=grantee))
        try:
            asyncio.run(access.give(chain_of(giver), to, request.resource, [request.right]))  # type: ignore[list-item]
        except AccessDenied:
            assert rank(access, request._replace(chain=grantee)) == before
            continue
        assert rank(access, request._replace(chain=giver)) == 2
        assert oracle.decide(policy, [], giver, request.right, request.resource, False) == "allow"
        # Nor can it be passed on by whoever has it by the grant alone.
        if oracle.decide(policy, [], grantee, request.right, request.resource, False) != "allow":
            with pytest.raises(AccessDenied):
                asyncio.run(access.give(chain_of(grantee), "third", request.resource, [request.right]))  # type: ignore[list-item]


def test_a_parents_question_is_asked_about_a_space_that_its_child_owns(access: AccessManager) -> None:
    boss = {"rights": ["write"], "resources": ["memory/*"], "roles": ["boss"]}
    policy = {
        "roles": {"boss": {"agents": ["boss"]}},
        "allow": [{"rights": ["spawn"], "resources": ["spawn/*"], "roles": ["boss"]}],
        "deny": [],
        "ask": [boss],
    }
    child = (("me", "", "kid/task", ""), ("me", "", "boss", ""))
    for what, expected in ((policy, 1), (policy | {"ask": []}, 2)):
        under(access, what, [])
        assert rank(access, made.Request(child, "write", "memory/agent/kid", False)) == expected
    under(access, policy, [])
    with pytest.raises(AccessDenied):  # what one would have to ask for oneself is nothing to give away
        asyncio.run(access.give(chain_of(child), "friend", "memory/agent/kid", ["write"]))
