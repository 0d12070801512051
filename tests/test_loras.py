"""LoRA adapters from the command line to the agent: each agent's own, on one model, in one batch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import aios_adapters as aios
from aios_kernel import errors
from aios_kernel.client import stop_in_process
from aios_kernel.config import Config, load
from aios_kernel.engine.load import DEMO
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

AIOS = str(Path(sys.executable).parent / "aios")
QUESTION = "What is the price of kiwi_7?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the demo model."""
    from transformers import AutoModelForCausalLM

    from aios_evals.lora_bench.adapters import write_adapter

    model = AutoModelForCausalLM.from_pretrained(DEMO)
    place = tmp_path_factory.mktemp("loras")
    return {
        name: str(write_adapter(place / name, model, rank=rank, seed=rank, strength=0.3))
        for name, rank in (("french", 4), ("german", 8))
    }


@pytest.fixture
def kernel(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """A kernel with the demo model and both adapters; decorated agents of the test use it."""
    values = {"KERNEL": "inprocess", "HOME": str(tmp_path), "EMBEDDER": "hash", "VECTORS": "exact", "THREADS": "1",
              "LORAS": json.dumps(folders), "MODELS": json.dumps({"gpt-4o": "german"})}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"AIOS_{name}", value)
    yield
    from aios_adapters import _kernel

    _kernel.close_links()
    stop_in_process(load())


def ask(text: str = QUESTION, **fields: Any) -> LlmResult:
    scope = aios.current()
    assert scope is not None
    sampling = Sampling(temperature=0.0, max_tokens=24)
    return scope.chat(LlmChat(messages=[Message("user", text)], sampling=sampling, **fields))


def asked_by(name: str, **options: Any) -> LlmResult:
    """The answer to an agent of this adapter."""
    return aios.agent(ask, name=name, **options)()


@pytest.mark.usefixtures("kernel")
def test_each_agent_has_its_adapter() -> None:
    plain, french, german = asked_by("a"), asked_by("b", lora="french"), asked_by("c", lora="german")
    assert len({plain.text, french.text, german.text}) == 3
    assert (plain.model, french.model, german.model) == ("demo", "french", "german")
    options = [{}, {"lora": "french"}, {"lora": "german"}] * 4
    with ThreadPoolExecutor(12) as pool:  # all at once, a second time
        results = list(pool.map(lambda each: asked_by("d", **each), options))
    assert [result.text for result in results] == [plain.text, french.text, german.text] * 4


@pytest.mark.usefixtures("kernel")
def test_a_model_name_is_an_adapter_too() -> None:
    french, german = asked_by("a", lora="french").text, asked_by("a", lora="german").text

    @aios.agent(name="b", lora="french", models={"mine": "german"})
    def work() -> None:
        assert ask().text == french
        assert ask(model="gpt-5").text == french  # any name is the model, with the agent's own adapter
        assert ask(model="french").text == french
        for name in ("german", "gpt-4o", "mine"):  # itself; by the kernel's [models]; by the agent's
            assert ask(model=name).text == german

        @aios.agent(name="inner")
        def inherits() -> str:
            return ask().text

        assert inherits() == french

    work()


@pytest.mark.usefixtures("kernel")
def test_an_adapter_that_is_not_loaded() -> None:
    with pytest.raises(errors.UnknownModel, match='"spanish" is not loaded; loaded are: french, german') as caught:
        asked_by("a", lora="spanish")
    assert "--lora spanish=PATH" in (caught.value.fix or "")
    assert caught.value.agent == "a"


def test_a_snapshot_continues_while_others_have_the_pool(folders: dict[str, str], tmp_path: Path) -> None:
    """A pool for few contexts and one adapter at a time: all is swapped, each answer is as without competition."""
    from aios_kernel.client import Client

    def answers(kv_tokens: int, policy: str) -> list[str]:
        config = Config(home=str(tmp_path / f"{kv_tokens}"), kernel="inprocess", model="demo", embedder="hash",
                        vectors="exact", threads=1, loras=folders, kv_tokens=kv_tokens, policy=policy)  # fmt: skip
        running = InProcessKernel(config)
        try:
            with ThreadPoolExecutor(9) as pool:
                return list(pool.map(lambda number: answer(running, number), range(9)))
        finally:
            running.stop()

    def answer(running: InProcessKernel, number: int) -> str:
        connection = running.connect(f"c{number}")
        try:
            lora = (None, "french", "german")[number % 3]
            call = LlmChat(messages=[Message("user", f"{QUESTION} {number}")], lora=lora,
                           sampling=Sampling(temperature=0.0, max_tokens=40))  # fmt: skip
            result = Client(connection).call(call)
            assert isinstance(result, LlmResult)
            return result.text
        finally:
            connection.close()

    wide = answers(16_384, "fifo")
    assert answers(768, "round_robin") == wide


def test_the_command_line_serves_adapters_and_lists_them(folders: dict[str, str], tmp_path: Path) -> None:
    environment = os.environ | {"AIOS_HOME": str(tmp_path), "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    options = [part for name, folder in folders.items() for part in ("--lora", f"{name}={folder}")]
    with subprocess.Popen(
        [AIOS, "serve", "demo", "--http", "127.0.0.1:0", *options], env=environment, stdout=subprocess.PIPE, text=True
    ) as kernel:
        try:
            assert kernel.stdout is not None
            line = kernel.stdout.readline()
            url = next(word for word in line.replace(";", " ").split() if word.startswith("http"))
            models = asked_by_http(url, tmp_path, "/models")["data"]
            assert [model["id"] for model in models] == ["demo", "french", "german"]
            body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8, "temperature": 0}
            answers = [asked_by_http(url, tmp_path, "/chat/completions", {**body, "model": name}) for name in folders]
            assert [answer["model"] for answer in answers] == [*folders]
            assert answers[0]["choices"] != answers[1]["choices"]
        finally:
            kernel.send_signal(signal.SIGTERM)
            kernel.wait(30)


def asked_by_http(url: str, home: Path, path: str, body: Any = None) -> Any:
    token = (home / "run" / "token").read_text()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(f"{url}{path}", data, headers), timeout=60) as reply:
        return json.load(reply)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--lora", "french"], "is not NAME=PATH"),
        (["demo", "--lora", "a=x", "--lora", "a=y"], "two adapters"),
        (["fake", "--lora", "a=./nowhere"], "fake engine serves no LoRA"),
        (["demo", "--lora", "a=./nowhere"], "no folder"),
        (["demo", "--lora", "demo=./nowhere"], "the model has that name"),
    ],
)
def test_what_cannot_be_served_ends_the_start(tmp_path: Path, arguments: list[str], said: str) -> None:
    environment = os.environ | {"AIOS_HOME": str(tmp_path), "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    done = subprocess.run([AIOS, "serve", *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert said in " ".join((done.stdout + done.stderr).split())
