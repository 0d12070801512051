"""Grants for tools in the agents' processes: each ends exactly once."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aios_kernel.errors import AccessDenied, InvalidRequest, NotFound, ToolTimeout
from aios_kernel.syscalls import ToolBegin, ToolEnd, ToolGrant
from aios_kernel.tools import Demand, ToolGrants
from aios_kernel.tools.file import LocalEntry


def granted_to(
    grants: ToolGrants, program: str, call: ToolBegin, now: float, *, allowed: Collection[str] | None = None
) -> ToolGrant:
    request = grants.checked("me", call, allowed=allowed)
    assert grants.slots.take_now(request.demand)
    return grants.begin(program, request, now)


def begin(grants: ToolGrants, program: str = "p", name: str = "t", now: float = 0.0, **more: object) -> str:
    return granted_to(grants, program, ToolBegin(name=name, **more), now).grant  # type: ignore[arg-type]


def test_a_grant_has_a_limit_and_its_end_gives_the_seconds() -> None:
    grants = ToolGrants(300.0)
    granted = granted_to(grants, "p", ToolBegin(name="t", arguments='{"x": 1}'), 10.0)
    assert granted.timeout_s == 300.0
    assert granted_to(grants, "p", ToolBegin(name="t", timeout_s=7), 10.0).timeout_s == 7
    assert grants.end("p", ToolEnd(grant=granted.grant), 12.5) == 2.5
    assert grants.end("p", ToolEnd(grant=begin(grants, now=20.0)), 19.0) == 0.0  # a clock that was set back


def test_ids_are_long_and_never_repeat() -> None:
    grants = ToolGrants()
    ids = {begin(grants) for _ in range(1000)}
    assert len(ids) == 1000
    assert min(map(len, ids)) >= 22


def test_unknown_foreign_and_double_ends_are_told_apart() -> None:
    grants = ToolGrants()
    grant = begin(grants)
    for program, id in (("p", "made up"), ("q", grant), ("", grant), ("p", "")):
        with pytest.raises(NotFound):
            grants.end(program, ToolEnd(grant=id), 1.0)
    assert grants.end("p", ToolEnd(grant=grant, ok=False, error="it broke"), 1.0) == 1.0
    with pytest.raises(InvalidRequest, match="reported before"):
        grants.end("p", ToolEnd(grant=grant), 1.0)
    with pytest.raises(NotFound):
        grants.end("q", ToolEnd(grant=grant), 1.0)


def test_a_hanging_tool_expires_once_after_limit_and_grace() -> None:
    grants = ToolGrants(5.0, grace_s=1.0)
    grant, other = begin(grants, now=100.0), begin(grants, now=100.0, timeout_s=60.0)
    assert grants.expired(106.0) == []
    (late,) = grants.expired(106.5)
    assert (late.grant, late.program, late.name, late.began_s) == (grant, "p", "t", 100.0)
    assert isinstance(late.error, ToolTimeout)
    assert "did not end within 5 s" in late.error.message
    assert grants.expired(107.0) == []
    with pytest.raises(ToolTimeout, match="run out of time"):
        grants.end("p", ToolEnd(grant=grant), 108.0)
    assert grants.end("p", ToolEnd(grant=other), 110.0) == 10.0


def test_a_program_that_leaves_takes_its_grants_along() -> None:
    grants = ToolGrants(5.0)
    mine, others = begin(grants), begin(grants, program="q")
    grants.drop("p")
    with pytest.raises(NotFound):
        grants.end("p", ToolEnd(grant=mine), 1.0)
    assert [late.grant for late in grants.expired(1000.0)] == [others]


def test_an_allow_list_limits_the_tools() -> None:
    grants = ToolGrants()
    call = ToolBegin(name="shell")
    with pytest.raises(AccessDenied, match="may not use tool 'shell'"):
        granted_to(grants, "p", call, 0.0, allowed=["search"])
    with pytest.raises(AccessDenied):
        granted_to(grants, "p", call, 0.0, allowed=[])
    assert granted_to(grants, "p", call, 0.0, allowed=["search", "shell"]).grant
    assert granted_to(grants, "p", call, 0.0).grant


@pytest.mark.parametrize(
    "call",
    [
        ToolBegin(name=""), ToolBegin(name="a\0b"), ToolBegin(name="x" * 2000), ToolBegin(name="t", arguments=""),
        ToolBegin(name="t", arguments="[1]"), ToolBegin(name="t", arguments="nonsense"),
        ToolBegin(name="t", timeout_s=0), ToolBegin(name="t", timeout_s=-1),
        ToolBegin(name="t", timeout_s=float("nan")), ToolBegin(name="t", timeout_s=float("inf")),
    ],
)  # fmt: skip
def test_malformed_calls_are_refused_and_grant_nothing(call: ToolBegin) -> None:
    grants = ToolGrants()
    with pytest.raises(InvalidRequest):
        granted_to(grants, "p", call, 0.0)
    assert grants.expired(1e9) == []


def test_latencies_are_kept_by_tool_and_bounded() -> None:
    grants = ToolGrants()
    assert grants.latency("t") is None
    for n in range(100):
        grants.end("p", ToolEnd(grant=begin(grants, now=float(n))), n + n / 10)
    known = grants.latency("t")
    assert known is not None
    assert (known.count, len(known.recent_s)) == (100, 64)
    assert known.mean_s == pytest.approx(4.95)
    assert known.recent_s[-1] == pytest.approx(9.9)
    for n in range(5000):
        grants.end("p", ToolEnd(grant=begin(grants, name=f"n{n}")), 1.0)
    assert grants.latency("t") is None
    assert grants.latency("n4999") is not None
    assert len(grants._history._tools) <= 1024
    assert len(grants._past) <= 4096


def test_a_place_is_free_again_however_its_grant_ends() -> None:
    grants = ToolGrants(5.0)
    call = ToolBegin(name="t", max_running=1, exclusive="machine")
    demand = grants.checked("me", call).demand

    def free() -> bool:
        if taken := grants.slots.take_now(demand):
            grants.slots.give(demand)
        return taken

    first = granted_to(grants, "p", call, 0.0)
    assert not free()
    grants.end("p", ToolEnd(grant=first.grant), 1.0)
    assert free()
    granted_to(grants, "p", call, 0.0)
    assert len(grants.expired(100.0)) == 1
    assert free()
    granted_to(grants, "p", call, 0.0)
    grants.drop("p")
    assert free()


def test_the_tools_file_has_rules_for_tools_of_agents() -> None:
    schema = {"properties": {"version": {"type": "integer"}}, "required": ["version"]}
    rule = LocalEntry(max_running=2, exclusive="cluster", timeout_s=9.0, expected_s=3.0, parameters=schema)
    grants = ToolGrants(rules={"deploy": rule})
    with pytest.raises(InvalidRequest, match="'version' is a required property"):
        grants.checked("me", ToolBegin(name="deploy"))
    call = ToolBegin(name="deploy", arguments='{"version": 3}', max_running=50, exclusive="mine")
    request = grants.checked("me", call)
    assert request.demand == Demand("local deploy", 2, "cluster")
    assert (request.limit_s, request.expected_s) == (9.0, 3.0)
    limits = [grants.checked("me", msgspec.structs.replace(call, timeout_s=asked)).limit_s for asked in (4.0, 50.0)]
    assert limits == [4.0, 9.0]
    other = ToolBegin(name="other", max_running=50)
    assert grants.checked("me", other).demand != grants.checked("you", other).demand, "each principal has its own"
    with pytest.raises(InvalidRequest, match="max_running"):
        grants.checked("me", ToolBegin(name="other", max_running=0))


class GrantMachine(RuleBasedStateMachine):
    """Every grant ends exactly once, whatever comes in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.grants = ToolGrants(5.0, grace_s=1.0)
        self.now = 0.0
        self.open: dict[str, tuple[str, float, float]] = {}
        self.ended: dict[str, tuple[str, type[Exception]]] = {}

    @rule(program=st.sampled_from("pq"), limit=st.sampled_from([None, 1.0, 30.0]))
    def begin(self, program: str, limit: float | None) -> None:
        granted = granted_to(self.grants, program, ToolBegin(name="t", timeout_s=limit), self.now)
        self.open[granted.grant] = (program, self.now, granted.timeout_s)

    @rule(program=st.sampled_from("pq"), data=st.data())
    def end(self, program: str, data: st.DataObject) -> None:
        if not (self.open or self.ended):
            return
        grant = data.draw(st.sampled_from([*self.open, *self.ended]))
        if grant in self.open and self.open[grant][0] == program:
            assert self.grants.end(program, ToolEnd(grant=grant), self.now) == self.now - self.open.pop(grant)[1]
            self.ended[grant] = (program, InvalidRequest)
            return
        owner, error = self.ended.get(grant, ("", NotFound))
        with pytest.raises(error if owner == program else NotFound):
            self.grants.end(program, ToolEnd(grant=grant), self.now)

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        late = {grant for grant, (_, began, limit) in self.open.items() if self.now > began + limit + 1.0}
        assert {expired.grant for expired in self.grants.expired(self.now)} == late
        for grant in late:
            self.ended[grant] = (self.open.pop(grant)[0], ToolTimeout)

    @rule(program=st.sampled_from("pq"))
    def drop(self, program: str) -> None:
        self.grants.drop(program)
        for grant in [grant for grant, (owner, _, _) in self.open.items() if owner == program]:
            del self.open[grant]
            self.ended[grant] = (program, NotFound)

    @invariant()
    def nothing_is_held_but_what_is_open(self) -> None:
        assert set(self.grants._open) == set(self.open)


TestGrantMachine = GrantMachine.TestCase
TestGrantMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
