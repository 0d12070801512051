"""Model objects of MetaGPT under the decorator."""

from __future__ import annotations

from typing import Any

import pytest

import aios_adapters as aios
from aios_adapters.testing import KernelHandle
from aios_kernel import errors
from aios_kernel.syscalls import LlmChat


@pytest.fixture
def llm(metagpt: Any) -> Any:
    """An OpenAI model object as a role gets it."""
    return metagpt.Role().llm


async def in_scope(function: Any, *args: Any, **kwargs: Any) -> Any:
    return await aios.agent(function, name="desk")(*args, **kwargs)


async def test_aask_with_system_prompt_and_format_messages(kernel: KernelHandle, llm: Any) -> None:
    assert await in_scope(llm.aask, "say hello", ["be brief"], stream=False) == "hello"
    assert await in_scope(llm.aask, "and now?", format_msgs=[{"role": "assistant", "content": "x"}]) == "echo: and now?"
    assert await in_scope(llm.aask_batch, ["say one", "say two"]) == "one\ntwo"


async def test_acompletion_gives_the_sdks_object(kernel: KernelHandle, llm: Any) -> None:
    completion = await in_scope(llm.acompletion, [{"role": "user", "content": "say three short words"}])
    assert type(completion).__name__ == "ChatCompletion"
    assert completion.choices[0].message.content == "three short words"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "fake"
    assert completion.usage.completion_tokens >= 3


async def test_aask_code_calls_its_function(kernel: KernelHandle, llm: Any) -> None:
    asked = 'call execute {"language": "python", "code": "print(1)"}'
    assert await in_scope(llm.aask_code, [{"role": "user", "content": asked}]) == {
        "language": "python",
        "code": "print(1)",
    }
    assert await in_scope(llm.aask_code, "say plain text") == {"language": "markdown", "code": "plain text"}


async def test_the_configuration_reaches_the_kernel(kernel: KernelHandle, llm: Any) -> None:
    seen: list[LlmChat] = []

    class Spy:
        @staticmethod
        @aios.hookspecs.hookimpl
        def aios_llm_request(agent: str, framework: str, call: LlmChat) -> None:
            seen.append(call)

    llm.config.max_token, llm.config.stop, llm.config.seed, llm.config.top_p = 2, "w9", 7, 0.5
    aios.host().register(Spy)
    try:
        assert await in_scope(llm.aask, "think 9", stream=False) == "w0 w1"
    finally:
        aios.host().unregister(Spy)
    sampling = seen[0].sampling
    assert (sampling.max_tokens, sampling.stop, sampling.seed) == (2, ["w9"], 7)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 0.5, None)
    assert seen[0].model == "gpt-4o"


@pytest.mark.parametrize(("stop", "said"), [("w3", "w0 w1 w2"), (["w5", "w2"], "w0 w1")])
async def test_a_stop_string_ends_the_answer(kernel: KernelHandle, llm: Any, stop: Any, said: str) -> None:
    llm.config.stop = stop
    assert (await in_scope(llm.aask, "think 9", stream=False)).strip() == said
    assert (await in_scope(llm.aask, "think 9", stream=True)).strip() == said
    completion = await in_scope(llm.acompletion, [{"role": "user", "content": "think 9"}])
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.content.strip() == said


async def test_a_seed_of_the_configuration_and_of_one_request(kernel: KernelHandle, llm: Any) -> None:
    from aios_adapter_metagpt.chats import sampling_of

    llm.config.seed = 7
    assert sampling_of(llm.config, {}).seed == 7
    assert sampling_of(llm.config, {"seed": 8}).seed == 8
    seeds: list[int | None] = []

    class Spy:
        @staticmethod
        @aios.hookspecs.hookimpl
        def aios_llm_request(agent: str, framework: str, call: LlmChat) -> None:
            seeds.append(call.sampling.seed)

    aios.host().register(Spy)
    try:
        await in_scope(llm.aask, "say hello", stream=True)
        await in_scope(llm.acompletion, [{"role": "user", "content": "say hello"}])
        await in_scope(llm.aask_code, "say plain text")
    finally:
        aios.host().unregister(Spy)
    assert seeds == [7, 7, 7]


async def test_images_are_refused(kernel: KernelHandle, llm: Any) -> None:
    with pytest.raises(errors.Unsupported, match="read text only"):
        await in_scope(llm.aask, "what is this?", images="aGVsbG8=")


async def test_a_provider_of_the_users_own_is_caught_too(kernel: KernelHandle, metagpt: Any, llm: Any) -> None:
    class Own(metagpt.BaseLLM):
        def __init__(self, config: Any) -> None:
            self.config = config

        async def _achat_completion(self, messages: Any, timeout: int = 0) -> Any:
            raise AssertionError("the original ran inside a scope")

        async def acompletion(self, messages: Any, timeout: int = 0) -> Any:
            raise AssertionError("the original ran inside a scope")

        async def _achat_completion_stream(self, messages: Any, timeout: int = 0) -> str:
            raise AssertionError("the original ran inside a scope")

    own = Own(llm.config)
    assert await in_scope(own.aask, "say caught") == "caught"
    answer = await in_scope(own.acompletion, [{"role": "user", "content": "say caught"}])
    assert own.get_choice_text(answer) == "caught"
    with pytest.raises(AssertionError, match="inside a scope"):
        await own.aask("outside, it is on its own")


async def test_a_human_stays_a_human(kernel: KernelHandle, metagpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "typed")
    assert await in_scope(metagpt.HumanProvider(None).aask, "your turn") == "typed"
    assert await in_scope(metagpt.HumanProvider(None).acompletion_text, []) == ""
    assert not any(row.llm_calls for row in kernel.ps())


async def test_patches_are_undone(kernel: KernelHandle, metagpt: Any) -> None:
    patched = metagpt.OpenAILLM.acompletion_text
    aios.host().deactivate()
    try:
        assert not hasattr(metagpt.OpenAILLM.acompletion_text, "__aios_original__")
        assert not hasattr(metagpt.Memory.add, "__aios_original__")
        assert metagpt.OpenAILLM.acompletion_text is patched.__aios_original__
    finally:
        aios.host().activate()
    assert hasattr(metagpt.OpenAILLM.acompletion_text, "__aios_original__")
