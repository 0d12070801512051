"""vLLM's own server as a child of a kernel: killed in the middle of answers, and gone with its kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_kernel.client import Client
from aios_kernel.config import Config
from aios_kernel.engine.load import DEMO
from aios_kernel.errors import EngineUnavailable
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import LlmChat, LlmResult, Message, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def until(condition: Callable[[], Any], seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


@pytest.fixture
def kernel(tmp_path: Path, vllm_settings: Any) -> Generator[InProcessKernel]:
    config = Config(
        kernel="inprocess",
        home=str(tmp_path),
        model=f"vllm:{DEMO}",
        vllm=vllm_settings,
        embedder="hash",
        vectors="exact",
    )
    running = InProcessKernel(config)
    yield running
    running.stop()


def test_a_killed_vllm_is_told_and_started_again(kernel: InProcessKernel, tmp_path: Path) -> None:
    connection = kernel.connect("tester")
    client = Client(connection)
    engine: Any = kernel.kernel.model.engine if kernel.kernel is not None else None
    call = LlmChat(messages=[Message("user", "What is 12 * 7?")], sampling=Sampling(temperature=0.0, max_tokens=20))
    before = client.call(call)
    assert isinstance(before, LlmResult)
    assert before.usage.prompt_tokens > 0
    long = msgspec.structs.replace(
        call, sampling=Sampling(max_tokens=1500), schema={"type": "string", "minLength": 3000}
    )
    stream = client.stream(msgspec.structs.replace(long, stream=True))
    next(iter(stream))
    first = engine._child.pid
    os.killpg(first, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="killed by SIGKILL in the middle of this answer"):
        list(stream)
    after = client.call(call, timeout_s=300)  # it waits for the next life
    assert isinstance(after, LlmResult)
    assert after.text == before.text
    assert engine._child.pid != first
    assert (tmp_path / "run" / "vllm.log").stat().st_mode & 0o077 == 0
    connection.close()


def test_vllm_does_not_outlive_a_killed_kernel(tmp_path: Path, vllm_settings: Any) -> None:
    script = (
        "import sys, time, msgspec, pathlib\n"
        "from aios_kernel.engine.settings import VllmSettings\n"
        "from aios_kernel.engine.vllm import vllm_model\n"
        f"settings = msgspec.json.decode({msgspec.json.encode(vllm_settings).decode()!r}, type=VllmSettings)\n"
        f"model = vllm_model({str(DEMO)!r}, settings, home=pathlib.Path({str(tmp_path)!r}))\n"
        "print(model.engine._child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not group_lives(server), 60)


def test_adapters_answer_as_on_the_torch_engine(tmp_path: Path, vllm_settings: Any, lora_writer: Any) -> None:
    from transformers import AutoModelForCausalLM

    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(DEMO)
    folder = lora_writer(tmp_path / "odd", base, rank=6, seed=1, target_modules=layers)
    answers: list[list[str]] = []
    for model in (f"vllm:{DEMO}", str(DEMO)):
        config = Config(
            kernel="inprocess",
            home=str(tmp_path / model[:4]),
            model=model,
            dtype="float32",
            vllm=vllm_settings,
            loras={"odd": str(folder)},
            embedder="hash",
            vectors="exact",
        )
        running = InProcessKernel(config)
        try:
            answers.append([_answer(running, lora) for lora in (None, "odd", "odd", None)])
        finally:
            running.stop()
    assert answers[0] == answers[1]
    plain, odd, again, last = answers[0]
    assert plain == last != odd == again


def _answer(kernel: InProcessKernel, lora: str | None) -> str:
    connection = kernel.connect("tester")
    sampling = Sampling(temperature=0.0, max_tokens=12)
    call = LlmChat(messages=[Message("user", "What is 12 * 7?")], sampling=sampling, lora=lora)
    result = Client(connection).call(call)
    connection.close()
    assert isinstance(result, LlmResult)
    return result.text


def group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_vllm_refuses_is_told_with_its_log(tmp_path: Path, vllm_settings: Any) -> None:
    wrong = msgspec.structs.replace(vllm_settings, args=["--no-such-flag"])
    config = Config(
        home=str(tmp_path), kernel="inprocess", model=f"vllm:{DEMO}", vllm=wrong, embedder="hash", vectors="exact"
    )
    with pytest.raises(EngineUnavailable, match="no-such-flag"):
        InProcessKernel(config)
