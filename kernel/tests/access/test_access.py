"""Access: default deny, ownership, grants that survive a restart, and no tricks with names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios_kernel.access import AccessManager, Resource
from aios_kernel.errors import AccessDenied, ConfigError, InternalError, InvalidRequest

HOME = "u"


@pytest.fixture
async def access(tmp_path: Path) -> AsyncIterator[AccessManager]:
    manager = AccessManager(tmp_path / "access.db")
    yield manager
    await manager.close()


def allowed(
    access: AccessManager, agent: str, resource: str, right: str, group: str = "g", principal: str = HOME
) -> bool:
    try:
        access.check(principal, agent, group, resource, right)  # type: ignore[arg-type]
    except AccessDenied:
        return False
    return True


def test_an_agent_owns_its_space_and_its_group_shares_one(access: AccessManager) -> None:
    for right in ("read", "write"):
        assert allowed(access, "alice", "agent/alice", right)
        assert allowed(access, "alice", "agent/alice/notes/x", right)
        assert allowed(access, "alice", "group/g/board", right)
        assert not allowed(access, "alice", "agent/bob", right)
        assert not allowed(access, "alice", "group/h", right)
        assert not allowed(access, "g", "agent/alice", right, group="alice")


def test_a_denial_names_the_grant_that_would_help(access: AccessManager) -> None:
    with pytest.raises(AccessDenied) as caught:
        access.check(HOME, "bob", "g", "agent/alice/notes", "read")
    assert caught.value.agent == "bob"
    assert "bob" in caught.value.message
    assert 'access.grant with to="bob", resource="agent/alice/notes", rights=["read"]' in (caught.value.fix or "")


async def test_a_grant_covers_what_is_below_it_and_nothing_else(access: AccessManager) -> None:
    await access.grant(HOME, "alice", "bob", "agent/alice/notes", ["read"])
    assert allowed(access, "bob", "agent/alice/notes", "read")
    assert allowed(access, "bob", "agent/alice/notes/deep/er", "read")
    assert not allowed(access, "bob", "agent/alice/notes", "write")
    for other in ("agent/alice", "agent/alice/notes2", "agent/alice/note", "agent/alicebob/notes", "group/alice/notes"):
        assert not allowed(access, "bob", other, "read"), other
    assert not allowed(access, "carol", "agent/alice/notes", "read")


async def test_another_principal_is_out_of_reach(access: AccessManager) -> None:
    await access.grant(HOME, "alice", "bob", "agent/alice", ["read", "write"])
    assert not allowed(access, "bob", "agent/alice", "read", principal="other")
    await access.revoke("other", "alice", "bob", "agent/alice", ["read"])
    assert allowed(access, "bob", "agent/alice", "read")


async def test_only_the_owner_grants_and_revokes(access: AccessManager) -> None:
    for owner, resource, group in (
        ("bob", "agent/alice", "g"),
        ("bob", "group/h/board", "g"),
        ("bob", "group/g", None),
        ("", "group/x", None),
    ):
        with pytest.raises(AccessDenied):
            await access.grant(HOME, owner, "eve", resource, ["read"], group=group)
        with pytest.raises(AccessDenied):
            await access.revoke(HOME, owner, "eve", resource, ["read"], group=group)
    await access.grant(HOME, "bob", "eve", "group/g/board", ["write"], group="g")
    assert allowed(access, "eve", "group/g/board/today", "write", group="elsewhere")


async def test_a_grantee_cannot_pass_a_grant_on(access: AccessManager) -> None:
    await access.grant(HOME, "alice", "bob", "agent/alice", ["read", "write"])
    with pytest.raises(AccessDenied):
        await access.grant(HOME, "bob", "carol", "agent/alice", ["read"])


async def test_a_revoke_takes_narrower_grants_with_it(access: AccessManager) -> None:
    await access.grant(HOME, "alice", "bob", "agent/alice/a/b", ["read", "write"])
    await access.grant(HOME, "alice", "bob", "agent/alice/ab", ["read"])
    await access.revoke(HOME, "alice", "bob", "agent/alice/a", ["read"])
    assert not allowed(access, "bob", "agent/alice/a/b", "read")
    assert allowed(access, "bob", "agent/alice/a/b", "write")
    assert allowed(access, "bob", "agent/alice/ab", "read")


async def test_a_revoke_that_would_not_hold_is_refused(access: AccessManager) -> None:
    await access.grant(HOME, "alice", "bob", "agent/alice", ["read"])
    with pytest.raises(InvalidRequest, match="by a grant on agent/alice"):
        await access.revoke(HOME, "alice", "bob", "agent/alice/notes", ["read"])
    assert allowed(access, "bob", "agent/alice/notes", "read")


@pytest.mark.parametrize("restart", ["clean", "torn"])
async def test_grants_survive_a_restart(tmp_path: Path, restart: str) -> None:
    first = AccessManager(tmp_path / "access.db")
    await first.grant(HOME, "alice", "bob", "agent/alice/notes", ["read", "write"])
    await first.revoke(HOME, "alice", "bob", "agent/alice/notes", ["write"])
    if restart == "clean":
        await first.close()
    second = AccessManager(tmp_path / "access.db")
    assert allowed(second, "bob", "agent/alice/notes", "read")
    assert not allowed(second, "bob", "agent/alice/notes", "write")
    await second.close()
    if restart == "torn":
        await first.close()


@pytest.mark.parametrize(
    "resource",
    [
        "", "agent", "agent/", "/agent/alice", "agent//alice", "agent/alice/", "agent/alice/../bob", "agent/./alice",
        "agent/ali\0ce", "agent/ali\nce", "agent/\ud800", "user/alice", "Agent/alice", "agent/" + "x" * 256,
        "agent/a" + "/x" * 600, "..", "agent/..",
    ],
)  # fmt: skip
async def test_malformed_resources_are_refused_everywhere(access: AccessManager, resource: str) -> None:
    with pytest.raises(InvalidRequest):
        access.check(HOME, "alice", "g", resource, "read")
    with pytest.raises(InvalidRequest):
        await access.grant(HOME, "alice", "bob", resource, ["read"])


@pytest.mark.parametrize(("to", "rights"), [("a/b", ["read"]), ("", ["read"]), ("bob", []), ("bob", ["own"])])
async def test_malformed_grants_are_refused(access: AccessManager, to: str, rights: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        await access.grant(HOME, "alice", to, "agent/alice", rights)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        access.check(HOME, "alice", "g", "agent/alice", "own")  # type: ignore[arg-type]


async def test_a_thousand_grants_at_once_all_hold(access: AccessManager) -> None:
    await asyncio.gather(*(access.grant(HOME, "alice", f"b{i}", f"agent/alice/{i}", ["read"]) for i in range(1000)))
    assert all(allowed(access, f"b{i}", f"agent/alice/{i}", "read") for i in range(1000))
    assert not any(allowed(access, f"b{i}", f"agent/alice/{i + 1}", "read") for i in range(1000))


async def test_a_check_takes_microseconds(access: AccessManager) -> None:
    await asyncio.gather(*(access.grant(HOME, "alice", f"b{i}", f"agent/alice/{i}", ["read"]) for i in range(500)))

    def once() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            access.check(HOME, "b7", "g", "agent/alice/7/deep/space", "read")
        return (time.perf_counter() - began) / 1000

    assert min(once() for _ in range(20)) < 50e-6  # measured 3 us; the slack is for a busy machine


VERSION_1 = """
CREATE TABLE grants (
    principal TEXT NOT NULL, grantee TEXT NOT NULL, resource TEXT NOT NULL,
    right TEXT NOT NULL CHECK (right IN ('read', 'write')), granted_by TEXT NOT NULL, created_s REAL NOT NULL,
    PRIMARY KEY (principal, grantee, resource, right)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""


async def test_the_grants_of_version_1_still_hold(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "access.db"))
    db.execute(VERSION_1)
    rows = [(HOME, "bob", "agent/alice/notes", "read", "alice"), (HOME, "eve", "group/g/board", "write", "alice")]
    db.executemany("INSERT INTO grants VALUES (?, ?, ?, ?, ?, 1.0)", rows)
    db.close()
    for _ in range(2):
        access = AccessManager(tmp_path / "access.db")
        assert allowed(access, "bob", "agent/alice/notes/x", "read", group="h")
        assert allowed(access, "eve", "group/g/board", "write", group="h")
        assert not allowed(access, "eve", "group/g", "write", group="h")
        await access.close()
    access = AccessManager(tmp_path / "access.db")
    await access.revoke(HOME, "alice", "bob", "agent/alice", ["read"])
    assert not allowed(access, "bob", "agent/alice/notes", "read", group="h")
    await access.close()


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "access.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(InternalError, match="no database"):
        AccessManager(tmp_path / "access.db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "access.db"))
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="schema version 99"):
        AccessManager(tmp_path / "access.db")


NAMES = st.sampled_from(["a", "b", "ab"])
SPACES = st.lists(NAMES, max_size=2).map("/".join)
RESOURCES = st.builds(
    lambda kind, name, rest: f"{kind}/{name}" + (f"/{rest}" if rest else ""),
    st.sampled_from(["agent", "group"]), NAMES, SPACES,
)  # fmt: skip
RIGHTS = st.sampled_from(["read", "write"])
OPERATIONS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["u", "v"]), NAMES, NAMES, NAMES, RESOURCES, RIGHTS), max_size=12
)


def _covers(space: str, resource: str) -> bool:
    return resource.split("/")[: len(space.split("/"))] == space.split("/")


class _Oracle:
    """Thirty lines that say the same as the manager: a list of what was granted, in order."""

    def __init__(self) -> None:
        self.granted: list[tuple[str, str, str, str]] = []

    @staticmethod
    def owns(agent: str, group: str, resource: str) -> bool:
        kind, name = resource.split("/")[:2]
        return (kind == "agent" and name == agent) or (kind == "group" and name == group)

    def check(self, principal: str, agent: str, group: str, resource: str, right: str) -> bool:
        return self.owns(agent, group, resource) or any(
            (p, to, r) == (principal, agent, right) and _covers(space, resource) for p, to, space, r in self.granted
        )

    def change(self, give: bool, principal: str, owner: str, group: str, to: str, resource: str, right: str) -> bool:
        if not self.owns(owner, group, resource):
            return False
        if give:
            self.granted.append((principal, to, resource, right))
            return True
        mine = [g for g in self.granted if (g[0], g[1], g[3]) == (principal, to, right)]
        if any(space != resource and _covers(space, resource) for _, _, space, _ in mine):
            return False
        self.granted = [g for g in self.granted if g not in mine or not _covers(resource, g[2])]
        return True


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_decisions_equal_the_oracles(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[bool, str, str, str, str, str, str]]
) -> None:
    asyncio.run(_compare(tmp_path_factory.mktemp("access") / "access.db", operations))


async def _compare(path: Path, operations: list[tuple[bool, str, str, str, str, str, str]]) -> None:
    access, oracle = AccessManager(path), _Oracle()
    for give, principal, owner, group, to, resource, right in operations:
        change = access.grant if give else access.revoke
        try:
            await change(principal, owner, to, resource, [right], group=group)  # type: ignore[list-item]
            done = True
        except (AccessDenied, InvalidRequest):
            done = False
        assert done == oracle.change(give, principal, owner, group, to, resource, right)
    await access.close()
    access = AccessManager(path)
    spaces = {space for operation in operations for space in Resource.parse(operation[5]).within()}
    for resource in spaces | {space + "/b" for space in spaces}:
        for principal in "uv":
            for agent in ("a", "b", "ab"):
                for right in ("read", "write"):
                    expected = oracle.check(principal, agent, "b", resource, right)
                    assert allowed(access, agent, resource, right, group="b", principal=principal) == expected
    await access.close()
