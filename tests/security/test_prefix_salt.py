"""Who shares the KV of a prompt: the agents of one trust domain, under one adapter, and nobody else.

On the torch engine with the demo model. A prompt that is found in the cache is told twice, neither time by the clock:
in the usage of the call, and by how many tokens went through the model.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from aios_evals.siege.world import Agent
from aios_kernel.chat.service import ChatService
from aios_kernel.config import Config
from aios_kernel.engine.load import DEMO
from aios_kernel.kernel import Kernel
from aios_kernel.server.runtime import running_kernel
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

SECRET = "The merger of the two breweries is announced on Thursday; until then nobody may hear of it. " * 2
LORAS = ("french", "german")


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the demo model."""
    from transformers import AutoModelForCausalLM

    from aios_evals.lora_bench.adapters import write_adapter

    model = AutoModelForCausalLM.from_pretrained(DEMO)
    place = tmp_path_factory.mktemp("loras")
    return {
        name: str(write_adapter(place / name, model, rank=4, seed=seed, strength=0.3))
        for seed, name in enumerate(LORAS)
    }


def config_of(home: Path, loras: dict[str, str], **more: object) -> Config:
    values = {"kernel": "inprocess", "home": str(home), "model": "demo", "embedder": "hash", "vectors": "exact"}
    return Config(**values, threads=1, loras=loras, **more)  # type: ignore[arg-type]


@pytest.fixture
async def kernel(tmp_path: Path, loras: dict[str, str]) -> AsyncGenerator[Kernel, None]:
    async with running_kernel(config_of(tmp_path, loras)) as running:
        yield running


_runs = itertools.count()


async def agent_of(kernel: Kernel, principal: str, name: str = "reader", group: str | None = None) -> Agent:
    agent = Agent(kernel, principal, name, f"run-{next(_runs)}", group=group)
    await agent.begin()
    return agent


async def ask(agent: Agent, text: str = SECRET, lora: str | None = None) -> LlmResult:
    sampling = Sampling(temperature=0.0, max_tokens=2)
    answer = await agent.do(LlmChat(messages=[Message("user", text)], sampling=sampling, lora=lora))
    assert isinstance(answer.result, LlmResult)
    return answer.result


def is_hit(result: LlmResult) -> bool:
    """Whether all of a prompt was there, but for the one token that has to be computed; else none of it was."""
    usage = result.usage
    assert usage.cached_tokens in {0, usage.prompt_tokens - 1}
    return usage.cached_tokens > 0


async def test_one_principals_agents_share_and_others_do_not(kernel: Kernel) -> None:
    first, second = await agent_of(kernel, "ann"), await agent_of(kernel, "ann", "writer")
    stranger, spy = await agent_of(kernel, "bob"), await agent_of(kernel, "bob", group="ann")
    assert not is_hit(await ask(first))
    assert is_hit(await ask(second))
    for other in (stranger, spy):  # the second names the group that the first is in: it is ann's, not bob's
        before = kernel.dispatcher.tokens_computed
        result = await ask(other)
        assert not is_hit(result)
        assert kernel.dispatcher.tokens_computed - before >= result.usage.prompt_tokens
    before = kernel.dispatcher.tokens_computed
    assert is_hit(await ask(first))
    assert kernel.dispatcher.tokens_computed - before <= 3


async def test_groups_of_one_principal_are_domains_of_their_own(kernel: Kernel) -> None:
    sales, law = await agent_of(kernel, "ann", group="sales"), await agent_of(kernel, "ann", group="law")
    assert [is_hit(await ask(agent)) for agent in (sales, law, sales, law)] == [False, False, True, True]


async def test_names_that_run_together_are_not_one_domain(kernel: Kernel) -> None:
    """A principal `a` in the group `b NUL c` is not the principal `a NUL b` in the group `c`."""
    one, two = await agent_of(kernel, "a", group="b\x00c"), await agent_of(kernel, "a\x00b", group="c")
    assert [is_hit(await ask(agent)) for agent in (one, two)] == [False, False]


async def test_adapters_are_apart_within_a_principal(kernel: Kernel) -> None:
    agent = await agent_of(kernel, "ann")
    assert [is_hit(await ask(agent, lora=lora)) for lora in (None, *LORAS)] == [False] * 3
    assert [is_hit(await ask(agent, lora=lora)) for lora in (None, *LORAS)] == [True] * 3
    stranger = await agent_of(kernel, "bob")
    assert [is_hit(await ask(stranger, lora=lora)) for lora in (None, *LORAS)] == [False] * 3


async def test_prompts_that_are_computed_at_the_same_time_are_apart(kernel: Kernel) -> None:
    agents = [await agent_of(kernel, f"principal{number}") for number in range(8)]
    results = await asyncio.gather(*(ask(agent) for agent in agents))
    assert not any(is_hit(result) for result in results)


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param(
            {"kv_tokens": 512, "policy": "round_robin", "policy_options": {"slots": 4, "quantum": 8}},
            id="swapping",
        ),
    ],
)
async def test_a_domain_finds_what_it_computed_and_nothing_else(
    tmp_path: Path, loras: dict[str, str], more: dict[str, object]
) -> None:
    """Random calls of many domains, several at a time. A domain's first call finds nothing, whoever was before it."""
    rng, seen, hits = random.Random(3), set[tuple[str, str, str | None]](), 0
    async with running_kernel(config_of(tmp_path, loras, **more)) as kernel:
        agents = [
            await agent_of(kernel, principal, group=group)
            for principal in ("ann", "bob", "eve")
            for group in ("ann", "bob", "shared")
        ]
        for _ in range(40):
            calls = [(rng.choice(agents), rng.choice((None, *LORAS))) for _ in range(4)]
            results = await asyncio.gather(*(ask(agent, lora=lora) for agent, lora in calls))
            domains = [(agent.principal, agent.group or "", lora) for agent, lora in calls]
            for domain, result in zip(domains, results, strict=True):
                first = domain not in seen and domains.count(domain) == 1
                assert not (first and result.usage.cached_tokens)
                hits += result.usage.cached_tokens > 0
            seen.update(domains)
    assert len(seen) == 27
    assert hits > 10


async def test_without_a_salt_it_would_be_found_out(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatService, "_salt", lambda self, program: b"everybody")
    await ask(await agent_of(kernel, "ann"))
    assert is_hit(await ask(await agent_of(kernel, "bob")))
