"""The policy file: what it means, and that nothing in it is passed over."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.access import AccessManager, Policy, Subject
from aios_kernel.access.policy_file import PolicyText
from aios_kernel.access.resource import covering
from aios_kernel.errors import ConfigError, InvalidRequest

EXAMPLE = """\
version = 1

[roles.reader]
agents = ["researcher", "critic*"]
budget = 1000

[roles.boss]
principals = ["ann"]
agents = ["boss"]

[[allow]]
name = "reading the web"
roles = ["reader"]
rights = ["call"]
resources = ["tool/web", "tool/mcp/git*"]

[[allow]]
rights = ["use", "send"]
resources = ["model/*", "message/*"]

[[allow]]
roles = ["boss"]
rights = ["call", "read", "write"]
resources = ["tool/*", "agent/*"]

[[deny]]
name = "nobody pays"
rights = ["call"]
resources = ["tool/pay"]

[[ask]]
name = "mail after strangers spoke"
rights = ["call"]
resources = ["tool/web/post"]
tainted = true
timeout_s = 20

[taint]
sources = ["tool/web"]
"""


def policy(text: str) -> Policy:
    return Policy(PolicyText(text, "access.toml"))


@pytest.fixture
def access(tmp_path: Path) -> AccessManager:
    (tmp_path / "access.toml").write_text(EXAMPLE)
    return AccessManager(tmp_path / "access.db", tmp_path / "access.toml")


def decided(access: AccessManager, agent: str, right: str, resource: str, **about: object) -> str:
    tainted = bool(about.pop("tainted", False))
    subject = Subject(**{"principal": "u", "group": "u", "agent": agent} | about)  # type: ignore[arg-type]
    return access.decide((subject,), right, resource, tainted=tainted).effect  # type: ignore[arg-type]


async def test_rules_say_what_they_say(access: AccessManager) -> None:
    for agent, right, resource, effect in (
        ("researcher", "call", "tool/web", "allow"),
        ("researcher", "call", "tool/web/search", "allow"),
        ("researcher", "call", "tool/website", "deny"),
        ("researcher/inner", "call", "tool/web", "allow"),
        ("researchers", "call", "tool/web", "deny"),
        ("critic7", "call", "tool/mcp/github/issues", "allow"),
        ("other", "call", "tool/web", "deny"),
        ("other", "use", "model/x", "allow"),
        ("other", "read", "memory/agent/other/x", "allow"),
        ("other", "read", "memory/agent/researcher", "deny"),
        ("other", "write", "storage/group/u", "allow"),
        ("boss", "call", "tool/web", "deny"),  # not Ann's
    ):
        assert decided(access, agent, right, resource) == effect, (agent, right, resource)
    assert decided(access, "boss", "call", "tool/x", principal="ann") == "allow"
    assert decided(access, "boss", "read", "storage/agent/other/x", principal="ann") == "allow"
    assert decided(access, "boss", "call", "tool/pay", principal="ann") == "deny"
    assert decided(access, "boss", "read", "memory/group/other", principal="ann") == "deny"
    assert decided(access, "researcher", "call", "tool/web/post") == "allow"
    assert decided(access, "researcher", "call", "tool/web/post", tainted=True) == "ask"
    await access.close()


async def test_the_deciding_rule_is_named_with_its_line(access: AccessManager) -> None:
    chain = (Subject("u", "u", "researcher"),)
    found = access.decide(chain, "call", "tool/web")
    assert found.rule.startswith('allow "reading the web" (')
    assert found.rule.endswith("access.toml:11)")
    assert access.decide(chain, "call", "tool/pay").rule.startswith('deny "nobody pays"')
    assert access.decide(chain, "call", "tool/none").rule == "nothing allows it"
    assert access.decide(chain, "read", "memory/agent/researcher").rule == "it owns the space"
    question = access.decide(chain, "call", "tool/web/post", tainted=True).question
    assert question is not None
    assert (question.timeout_s, question.default) == (20, "deny")
    await access.close()


def test_roles_budgets_and_sources() -> None:
    rules = policy(EXAMPLE)
    assert rules.roles(Subject("ann", "g", "boss")) == {"boss"}
    assert rules.budget(Subject("u", "g", "critic")) == 1000
    assert rules.budget(Subject("u", "g", "boss")) is None
    assert rules.taints("web")
    assert rules.taints("web/fetch")
    assert not rules.taints("website")


def rule(right: str, resource: str, effect: str = "allow") -> str:
    return f"[[{effect}]]\nrights = ['{right}']\nresources = ['{resource}']\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = 2", r":1: version: "),
        ("\nallowed = []", r":2: allowed: unknown key; there are: version, roles"),
        (rule("call", "tool/x") + "role = ['a']", r":4: allow\[0\].role: .*unknown field"),
        (rule("call", "tool/x") + "tainted = true", r":4: allow\[0\].tainted: .*unknown field"),
        ("[[allow]]\nrights = ['call']\nresource = ['tool/x']", r"allow\[0\]"),
        (rule("fly", "tool/x"), r":2: allow\[0\].rights: Invalid enum value"),
        (rule("call", "tol/x"), r":3: allow\[0\].resources: \"tol/x\" names no resource"),
        (rule("call", "tool/"), r"names no resource"),
        (rule("call", "tool/*/x"), r":3: .* a \* may only stand at the end"),
        (rule("read", "tool/x"), r":2: .*the right on tool/x is call"),
        (rule("call', 'read", "tool/x"), r":2: .*none of the resources knows the right \"read\""),
        ("[[allow]]\nrights = []\nresources = ['tool/x']", r":2: allow\[0\].rights"),
        (rule("read", "memory/alice"), r"write memory/agent/"),
        (rule("call", "tool/x", "deny") * 2 + "roles = ['x']", r":7: deny\[1\].roles: there is no role \"x\""),
        (rule("call", "tool/x", "ask") + "timeout_s = 0", r":4: ask\[0\].timeout_s"),
        (rule("spawn", "spawn/*", "ask"), r"nobody can be asked about \"spawn\""),
        ("[roles.a]", r":1: roles.a: nobody is named"),
        ("[roles.a]\nagents = []", r"nobody is named"),
        ("[roles.a]\nagents = ['x']\nbudget = -1", r":3: roles.a.budget"),
        ("[taint]\nsources = ['web']", r":2: taint.sources: \"web\" is no tool"),
        ("[taint]\ncontained = ['web']", r":2: taint.contained: there is no role"),
        ("[approvals]\nby = 'ann'", r":2: approvals.by"),
        ("[[allow]\n", r" is no TOML: .*line 1"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        policy(text)
    assert caught.value.fix == "edit access.toml"


async def test_a_policy_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(EXAMPLE)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody may write") as caught:
        AccessManager(tmp_path / "access.db", path)
    assert caught.value.fix == f"chmod o-w {path}"


async def test_without_a_file_spaces_are_apart_and_the_rest_is_open(tmp_path: Path) -> None:
    access = AccessManager(tmp_path / "access.db", tmp_path / "none.toml")
    for right, resource in (("call", "tool/x"), ("use", "model/x"), ("send", "message/x"), ("spawn", "spawn/agent/x")):
        assert decided(access, "a", right, resource) == "allow"
    assert decided(access, "a", "read", "memory/agent/b") == "deny"
    await access.close()
    with pytest.raises(ConfigError, match="cannot be read"):
        AccessManager(tmp_path / "access.db", tmp_path / "none.toml", required=True)


async def test_a_reload_counts_at_once_and_a_wrong_file_changes_nothing(access: AccessManager, tmp_path: Path) -> None:
    file = tmp_path / "access.toml"
    assert decided(access, "researcher", "call", "tool/web") == "allow"
    file.write_text("[[allow]]\nrights = ['call']\nresources = ['tool/other']\n")
    access.reload()
    assert decided(access, "researcher", "call", "tool/web") == "deny"
    assert decided(access, "researcher", "call", "tool/other") == "allow"
    file.write_text("[[allow]]")
    with pytest.raises(ConfigError):
        access.reload()
    assert decided(access, "researcher", "call", "tool/other") == "allow"
    await access.close()


async def test_a_child_may_no_more_than_its_parents(access: AccessManager) -> None:
    parent, child = Subject("u", "u", "plain"), Subject("u", "u", "researcher")
    assert access.decide((child,), "call", "tool/web").effect == "allow"
    found = access.decide((child, parent), "call", "tool/web")
    assert (found.effect, found.rule) == ("deny", 'nothing allows it for its parent "plain"')
    assert access.decide((Subject("u", "u", "researcher/deep"), child, parent), "call", "tool/web").effect == "deny"
    # Another agent's own space is out of reach unless the parent may start that agent.
    assert access.decide((child, parent), "read", "memory/agent/researcher").effect == "deny"
    assert access.decide((Subject("u", "u", "plain/x"), parent), "read", "memory/agent/plain").effect == "allow"
    await access.close()


async def test_grants_of_tools_are_worth_what_their_giver_holds(access: AccessManager, tmp_path: Path) -> None:
    giver = (Subject("u", "u", "researcher"),)
    await access.give(giver, "other", "tool/web", ["call"])
    assert decided(access, "other", "call", "tool/web/search") == "allow"
    assert access.decide((Subject("u", "u", "other"),), "call", "tool/web").rule == 'a grant of "researcher"'
    for resource in ("tool/none", "tool/pay"):
        with pytest.raises(Exception, match="does not hold it itself"):
            await access.give(giver, "other", resource, ["call"])
    with pytest.raises(Exception, match="does not hold it itself"):  # held by a grant
        await access.give((Subject("u", "u", "other"),), "third", "tool/web", ["call"])
    (tmp_path / "access.toml").write_text("[[allow]]\nrights = ['use']\nresources = ['model/*']\n")
    access.reload()
    assert decided(access, "other", "call", "tool/web") == "deny"
    await access.close()


async def test_a_grant_goes_with_whoever_gave_it_and_others_stay(access: AccessManager) -> None:
    for name in ("researcher", "critic"):
        await access.give((Subject("u", "u", name),), "other", "tool/web", ["call"])
    await access.take_back((Subject("u", "u", "researcher"),), "other", "tool/web", ["call"])
    assert decided(access, "other", "call", "tool/web") == "allow"
    await access.take_back((Subject("u", "u", "critic"),), "other", "tool/web", ["call"])
    assert decided(access, "other", "call", "tool/web") == "deny"
    with pytest.raises(InvalidRequest):
        await access.give((Subject("u", "u", "critic"),), "other", "tool/web", ["read"])
    await access.close()


async def test_half_a_space_can_be_given(access: AccessManager) -> None:
    await access.give((Subject("u", "u", "alice"),), "other", "memory/agent/alice/notes", ["read"])
    assert decided(access, "other", "read", "memory/agent/alice/notes/x") == "allow"
    assert decided(access, "other", "read", "storage/agent/alice/notes/x") == "deny"
    with pytest.raises(InvalidRequest, match="by a grant on memory/agent/alice/notes"):
        await access.take_back((Subject("u", "u", "alice"),), "other", "memory/agent/alice/notes/x", ["read"])
    await access.close()


def test_names_within_names() -> None:
    assert covering("tool/a/b") == ["tool/a/b", "tool/a"]
    assert covering("memory/agent/x") == ["memory/agent/x", "memory/agent"]
    assert covering("tool/") == ["tool/"]


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 40), st.text(max_size=20)).map(
            lambda cut: EXAMPLE[: cut[0]] + cut[2] + EXAMPLE[cut[0] + cut[1] :]
        ),
    )
)
def test_whatever_stands_in_the_file_it_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(policy(text).rules(Subject("u", "g", "a"), "call", False), tuple | None)
