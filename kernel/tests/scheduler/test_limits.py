"""Limits around policies: rates, totals, calls at once, by agent and by group."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aios_kernel.config import load
from aios_kernel.errors import BudgetExceeded, ConfigError
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.limits import Limited, Meters
from aios_kernel.scheduler.protocol import Residency
from aios_kernel.scheduler.rehearsal import Call, Pool
from aios_kernel.scheduler.settings import Limit, Limits

POLICIES = Plugins().named("aios_kernel_policies")


def limited(policy: str, limits: Limits, kv_tokens: int = 1024) -> Pool:
    return Pool(Limited(POLICIES[policy]({}), Meters(limits)), kv_tokens=kv_tokens)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None)
@given(rate=st.integers(200, 5000), burst=st.integers(1, 2000), answers=st.lists(st.integers(1, 30), min_size=1))
def test_a_rate_holds_from_the_start_and_everything_ends(
    policy: str, rate: int, burst: int, answers: list[int]
) -> None:
    limits = Limits(agents={"slow": Limit(tokens_per_s=rate, burst_tokens=burst)})
    here = limited(policy, limits)
    for answer in answers:
        here.submit(Call(50, answer, agent="slow"))
        here.submit(Call(50, answer, agent="free"))
    while here.tasks:
        here.step()
        prompt, generated = here.served.get("slow", (0, 0))
        assert prompt + generated <= burst + rate * here.now_s + 2 * here.max_step_tokens
        assert here.steps < 50_000
    assert len(here.ended) == 2 * len(answers)
    assert not here.refused


@pytest.mark.parametrize("policy", POLICIES)
def test_others_go_on_while_one_waits_for_its_rate(policy: str) -> None:
    here = limited(policy, Limits(agents={"slow": Limit(tokens_per_s=10)}), kv_tokens=16 * 20)
    slow = [here.submit(Call(100, 20, agent="slow")) for _ in range(3)]
    for _ in range(5):
        here.step()
    free = [here.submit(Call(60, 20, agent="free")) for _ in range(4)]
    while not set(free) <= set(here.ended):
        here.step()
        assert here.steps < 200
    assert not set(slow) & set(here.ended)


@pytest.mark.parametrize("policy", POLICIES)
@given(total=st.integers(1, 900))
@settings(max_examples=25, deadline=None)
def test_a_total_is_never_passed_by_more_than_a_step(policy: str, total: int) -> None:
    here = limited(policy, Limits(groups={"g": Limit(total_tokens=total)}))
    for _ in range(12):
        here.submit(Call(60, 20, agent="eager"))
        here.submit(Call(60, 20, agent="other", group="h"))
        here.step()
    here.run(5000)
    assert sum(here.served.get("eager", (0, 0))) <= total + here.max_step_tokens
    assert here.served["other"] == [720, 240]
    assert here.refused


def test_a_refusal_names_agent_limit_and_fix() -> None:
    here = limited("fifo", Limits(agents={"eager": Limit(total_tokens=50)}))
    task = here.submit(Call(60, 20, agent="eager"))
    here.run(10)
    error = here.refused[task]
    assert isinstance(error, BudgetExceeded)
    assert 'agent "eager"' in error.message
    assert "50 tokens" in error.message
    assert error.fix is not None
    assert "[limits.agents.eager]" in error.fix


@pytest.mark.parametrize("policy", POLICIES)
def test_no_more_calls_than_the_cap_are_on_the_model(policy: str) -> None:
    here = limited(policy, Limits(agents={"wide": Limit(calls=2)}))
    for _ in range(10):
        here.submit(Call(40, 10, agent="wide"))
        here.submit(Call(40, 10, agent="other"))
    while here.tasks:
        here.step()
        on = [t for t in here.tasks.values() if t.agent == "wide" and t.residency is Residency.RESIDENT]
        assert len(on) <= 2
        assert here.steps < 5000


def test_limits_are_read_from_the_configuration(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("project")
    (folder / "aios.toml").write_text("[limits.agents.crawler]\ntokens_per_s = 500\ncalls = 2\n")
    config = load(cwd=folder)
    assert config.limits == Limits(agents={"crawler": Limit(tokens_per_s=500, calls=2)})
    (folder / "aios.toml").write_text("[limits.agents.crawler]\ntokens_a_second = 500\n")
    with pytest.raises(ConfigError):
        load(cwd=folder)
    (folder / "aios.toml").write_text("[limits.groups.g]\ncalls = 0\n")
    with pytest.raises(ConfigError):
        load(cwd=folder)


def test_what_was_used_counts_on_under_another_policy() -> None:
    meters = Meters(Limits(agents={"eager": Limit(total_tokens=100)}))
    here = Pool(Limited(POLICIES["fifo"]({}), meters))
    here.submit(Call(60, 10, agent="eager"))
    here.run(100)
    here.switch(Limited(POLICIES["fair"]({}), meters))
    second = here.submit(Call(60, 10, agent="eager"))
    here.run(100)
    assert second in here.refused


def test_a_plan_says_who_waits_for_a_limit() -> None:
    limits = Limits(agents={"slow": Limit(tokens_per_s=10), "narrow": Limit(calls=1)})
    here = limited("fifo", limits)
    slow = [here.submit(Call(100, 20, agent="slow")) for _ in range(2)]
    narrow = [here.submit(Call(20, 20, agent="narrow")) for _ in range(2)]
    here.submit(Call(20, 20, agent="free"))
    here.step()
    here.step()
    assert here.log[-1].waits == dict.fromkeys(slow, "its rate") | {narrow[1]: "its cap of calls"}
