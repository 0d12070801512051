"""A mixture whose experts stay in their files, served by a kernel: chats are answered, and the status tells of it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from aios_kernel.client import Client, connect, stop_in_process
from aios_kernel.config import Config
from aios_kernel.syscalls import ExpertStatus, KernelInfo, KernelStatus, LlmChat, LlmResult, Message, Sampling

Serve = Callable[..., Client]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>").save_pretrained(path)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=256,
    )
    MixtralForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def serve(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Serve, None, None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    configs: list[Config] = []

    def start(**settings: Any) -> Client:
        configs.append(
            Config(
                kernel="inprocess",
                home=str(tmp_path / f"aios{len(configs)}"),
                model=str(folder),
                device="cpu",
                kv_tokens=1024,
                embedder="hash",
                vectors="exact",
                **settings,
            )
        )
        return Client(connect(configs[-1], client="test"))

    yield start
    for config in configs:
        stop_in_process(config)


def chat(client: Client) -> str:
    call = LlmChat(messages=[Message("user", "tell")], sampling=Sampling(temperature=0.0, max_tokens=12))
    answer = client.call(call)
    assert isinstance(answer, LlmResult)
    return answer.text


def experts(client: Client) -> ExpertStatus | None:
    status = client.call(KernelInfo())
    assert isinstance(status, KernelStatus)
    return status.experts


def test_a_third_of_the_experts_in_memory_says_the_same(serve: Serve) -> None:
    whole, cached = serve(), serve(expert_cache=0.3)
    assert chat(cached) == chat(whole)
    assert experts(whole) is None
    status = experts(cached)
    assert status is not None
    assert status.experts == 16
    assert 0 < status.used_bytes <= status.cache_bytes < 0.31 * status.all_bytes
    assert status.hits + status.late + status.misses > 20
    assert status.int8_experts == 0


def test_the_loss_of_int8_is_told(serve: Serve) -> None:
    client = serve(expert_cache=0.5, expert_int8=0.5)
    chat(client)
    status = experts(client)
    assert status is not None
    assert status.int8_experts == 8
    assert status.int8_logit_difference > 0
    assert status.int8_perplexity_ratio > 1
