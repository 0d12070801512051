"""`llm.embed`: the embedder by default, the served model by its name, beside running chats."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.engine.fake import fake_model
from aios_kernel.errors import Cancelled, ContextTooLong, EngineError, InvalidRequest
from aios_kernel.scheduler.dispatcher import Dispatcher
from aios_kernel.scheduler.fifo import Fifo
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import Embeddings, LlmChat, LlmEmbed, LlmResult, Message, Sampling

TEXTS = ["a word", "and some more words than that", "a word"]


def client_of(home: Path, model: str) -> Generator[Client, None, None]:
    config = Config(
        kernel="inprocess", home=str(home), model=model, embedder="hash", vectors="exact", kv_tokens=4096,
        models={"text-embedding-3-small": model}, device="cpu",
    )  # fmt: skip
    running = InProcessKernel(config)
    connection = running.connect("test")
    yield Client(connection)
    connection.close()
    running.stop()


@pytest.fixture(scope="module", params=["fake", "demo"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Client]]:
    for client in client_of(tmp_path_factory.mktemp("aios"), request.param):
        yield request.param, client


def embed(client: Client, texts: Sequence[str], model: str | None) -> Embeddings:
    answer = client.call(LlmEmbed(texts=list(texts), model=model))
    assert isinstance(answer, Embeddings)
    return answer


def test_who_embeds(served: tuple[str, Client]) -> None:
    name, client = served
    by_embedder = embed(client, TEXTS, None)
    assert by_embedder.model == "hash-256"
    assert embed(client, TEXTS, "some-other-model") == by_embedder
    by_model = embed(client, TEXTS, name)
    assert by_model.model == name
    assert embed(client, TEXTS, "text-embedding-3-small") == by_model  # [models] maps it
    assert by_model.usage.prompt_tokens >= 10
    for vectors in (by_model.vectors, by_embedder.vectors):
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
        assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)
        assert all(math.hypot(*vector) == pytest.approx(1.0, abs=1e-5) for vector in vectors)


def test_embedding_goes_on_beside_a_chat(served: tuple[str, Client]) -> None:
    name, client = served
    answers: list[Any] = []
    message = Message("user", "think 300")
    chat = LlmChat(messages=[message], sampling=Sampling(temperature=0.0, max_tokens=40))
    alone = client.call(chat)
    thread = threading.Thread(target=lambda: answers.append(client.call(chat)))
    thread.start()
    vectors = embed(client, TEXTS * 50, name).vectors
    thread.join()
    assert len(vectors) == 150
    assert isinstance(alone, LlmResult)
    assert answers[0].text == alone.text


@pytest.mark.parametrize(
    ("texts", "error"), [([], InvalidRequest), (["fine", ""], InvalidRequest), (["w " * 70_000], ContextTooLong)]
)
def test_what_cannot_be_embedded(served: tuple[str, Client], texts: list[str], error: type[Exception]) -> None:
    name, client = served
    with pytest.raises(error) as caught:
        embed(client, texts, name)
    assert "fix:" in str(caught.value)


class Dispatched:
    """A dispatcher on the fake engine whose embedding waits for a sign before each forward."""

    def __init__(self) -> None:
        self.model: LoadedModel = fake_model()
        self.go = threading.Semaphore(0)
        self.forwards = 0
        plain = self.model.engine.embed

        def waiting(texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
            for vectors in plain(texts):
                assert self.go.acquire(timeout=10)
                self.forwards += 1
                if texts[0] == [13]:
                    raise ValueError("unlucky")
                yield vectors

        self.model.engine.embed = waiting
        self.dispatcher = Dispatcher(self.model, Fifo({}), lambda updates: None)
        self.dispatcher.start()

    def end(self) -> None:
        self.go.release(100)
        self.dispatcher.stop()


@pytest.fixture
def dispatched() -> Generator[Dispatched, None, None]:
    made = Dispatched()
    yield made
    made.end()


def test_jobs_take_turns_and_fail_alone(dispatched: Dispatched) -> None:
    long, short = dispatched.dispatcher.embed([[1]] * 4), dispatched.dispatcher.embed([[2]])
    bad = dispatched.dispatcher.embed([[13]])
    dispatched.go.release(4)
    assert len(short.result(10)) == 1
    with pytest.raises(EngineError, match="unlucky"):
        bad.result(10)
    assert not long.done()
    dispatched.go.release(2)
    assert len(long.result(10)) == 4


def test_a_job_that_is_given_up_is_dropped(dispatched: Dispatched) -> None:
    given_up: Future[Any] = dispatched.dispatcher.embed([[1]] * 50)
    dispatched.go.release()
    assert given_up.cancel()
    dispatched.go.release(3)
    assert len(dispatched.dispatcher.embed([[2]]).result(10)) == 1
    assert dispatched.forwards <= 3
    with pytest.raises(CancelledError):
        given_up.result()


def test_a_shutdown_ends_what_waits(dispatched: Dispatched) -> None:
    waiting = [dispatched.dispatcher.embed([[1]] * 3) for _ in range(3)]
    dispatched.go.release()
    stopper = threading.Thread(target=dispatched.dispatcher.stop)
    stopper.start()
    dispatched.go.release(2)
    for future in waiting:
        with pytest.raises(Cancelled, match="shutting down"):
            future.result(10)
    stopper.join()
    with pytest.raises(Cancelled, match="shutting down"):
        dispatched.dispatcher.embed([[1]]).result(10)
