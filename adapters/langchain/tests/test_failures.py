from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core import exceptions as langchain
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

import aios_adapters as aios
from aios_adapter_langchain import failures
from aios_adapter_langchain.failures import as_model_errors
from aios_adapters._scope import Scope
from aios_adapters.testing import KernelHandle
from aios_kernel import errors

IMAGE = [HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])]


def test_too_long_a_prompt_is_langchains_overflow(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="long")
    def ask() -> None:
        model.invoke("word " * 70_000)

    with pytest.raises(langchain.ContextOverflowError) as overflow:
        ask()
    assert isinstance(overflow.value, errors.ContextTooLong)
    assert 'agent "long" called llm.chat' in str(overflow.value)
    assert "fix: " in str(overflow.value)


async def test_refusals_on_every_road(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    @aios.agent(name="looks")
    async def ask() -> None:
        for road in (model.invoke, lambda m: list(model.stream(m))):
            with pytest.raises(langchain.ModelInvalidRequestError, match="image_url") as refused:
                road(IMAGE)
            assert isinstance(refused.value, errors.Unsupported)
        with pytest.raises(errors.Unsupported, match="image_url"):
            await model.ainvoke(IMAGE)
        with pytest.raises(errors.Unsupported, match="image_url"):
            async for _ in model.astream(IMAGE):
                pass

    await ask()


def test_a_models_own_timeout(fake_kernel: KernelHandle) -> None:
    model = ChatOpenAI(model="gpt-4o", timeout=0.05)

    @aios.agent(name="hasty")
    def ask() -> None:
        model.invoke("ponder")

    with pytest.raises(langchain.ModelTimeoutError) as late:
        ask()
    assert isinstance(late.value, errors.DeadlineExceeded)


def test_fallbacks_and_callbacks_see_the_error(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    class Listener(BaseCallbackHandler):
        seen: list[str] = []

        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            self.seen.append(type(error).__name__)

    hasty = ChatOpenAI(model="gpt-4o", timeout=0.05, callbacks=[Listener()]).bind(stop=["never"])
    patient = model.bind(max_tokens=2)

    @aios.agent(name="fallback")
    def ask() -> Any:
        return hasty.with_fallbacks([patient]).invoke("ponder").content

    assert ask() == "hm hm "
    assert Listener.seen == ["ModelTimeout"]


def test_an_agent_raises_the_error(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    graph = create_agent(model, [])

    @aios.agent(name="agent")
    def ask() -> None:
        graph.invoke({"messages": IMAGE})

    with pytest.raises(errors.Unsupported, match="image_url"):
        ask()
    assert fake_kernel.ps() == []  # refused before anything was asked of the kernel


@pytest.mark.parametrize("kind", failures._KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_keeps_its_class_and_text(kind: type[errors.AiosError], scope: Scope) -> None:
    plain = errors.from_code(kind.code, "what happened", fix="do this", retry_after_s=2.0)
    with pytest.raises(kind) as raised, as_model_errors(scope):
        raise plain
    assert isinstance(raised.value, type(plain))
    assert isinstance(raised.value, langchain.ModelError)
    assert (raised.value.fix, raised.value.retry_after_s) == ("do this", 2.0)
    assert str(raised.value).startswith("what happened\n")


def test_other_errors_pass(scope: Scope) -> None:
    with pytest.raises(errors.Cancelled) as raised, as_model_errors(scope):
        raise errors.Cancelled("stopped")
    assert type(raised.value) is errors.Cancelled
    with pytest.raises(ZeroDivisionError), as_model_errors(scope):
        raise ZeroDivisionError


@pytest.fixture
def scope(fake_kernel: KernelHandle) -> Iterator[Scope]:
    with aios.running("someone") as scope:
        assert scope is not None
        yield scope


async def test_a_kernel_that_goes_away(fake_kernel: KernelHandle, model: ChatOpenAI) -> None:
    """A killed program's call ends at once, with the reason."""
    from aios_kernel.syscalls import KernelKill

    @aios.agent(name="killed")
    async def ask() -> None:
        await model.ainvoke("ponder")

    task = asyncio.create_task(ask())
    assert await asyncio.to_thread(fake_kernel.wait_for, lambda: bool(fake_kernel.ps()))
    await asyncio.to_thread(fake_kernel.client.call, KernelKill("killed"))
    with pytest.raises(errors.Cancelled):
        await task
