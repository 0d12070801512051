"""What pyright sees of wrapped agents: their own signatures. Checked by `make check` and tests/test_typing.py.

Every `pyright: ignore` here stands for an error that must be reported; one that is not needed is an error itself.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import assert_type

import aios_adapters as aios


@aios.agent
def bare(topic: str, *, times: int = 1) -> list[str]:
    return [topic] * times


@aios.agent(
    name="full",
    priority="batch",
    group="team",
    budget=1000,
    deadline=60,
    lora=None,
    memory="mediated",
    tools=["read"],
    models={"gpt-4o": "demo"},
    window="summarise",
    kernel="off",
)
def full(topic: str) -> int:
    return len(topic)


@aios.agent(name="coroutine")
async def coroutine(topic: str) -> bytes:
    return topic.encode()


@aios.agent(name="generator")
def generator(count: int) -> Generator[str, int, bool]:
    got = yield str(count)
    return got > 0


@aios.agent(name="async generator")
async def async_generator(count: int) -> AsyncGenerator[str, None]:
    yield str(count)


@aios.agent(name="class")
class Worker:
    def __init__(self, word: str) -> None:
        self.word = word

    def run(self, times: int) -> str:
        return self.word * times


class Callme:
    def __call__(self, number: int) -> str:
        return str(number)


async def use() -> None:
    assert_type(bare("x", times=2), list[str])
    assert_type(full("x"), int)
    assert_type(await coroutine("x"), bytes)
    assert_type(generator(1), Generator[str, int, bool])
    assert_type(async_generator(1), AsyncGenerator[str, None])
    assert_type(Worker("x"), Worker)
    assert_type(Worker("x").run(2), str)
    built = aios.agent(Worker("x"), name="built")
    assert_type(built, Worker)
    assert_type(built.word, str)
    assert_type(aios.agent(Callme(), name="callable")(1), str)
    assert_type(aios.agent(len, name="builtin")([1]), int)
    decorator: Callable[[Callable[[], int]], Callable[[], int]] = aios.agent(name="later")
    assert_type(decorator(lambda: 1)(), int)
    with aios.running("block", budget=10) as scope:
        assert_type(scope, aios.Scope | None)

    bare(1)  # pyright: ignore[reportArgumentType]
    bare("x", time=2)  # pyright: ignore[reportCallIssue]
    aios.agent(bare, priority="urgent")  # pyright: ignore[reportArgumentType]
    aios.agent(bare, prio="batch")  # pyright: ignore[reportCallIssue]
