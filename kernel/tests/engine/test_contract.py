"""The engine contract, for every engine as far as its capabilities say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from aios_kernel.config import Config, token_file_of
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.openai import openai_model
from aios_kernel.engine.openai.tokens import Prompt
from aios_kernel.engine.protocol import Context, Engine, KvExhausted, LoraAdapters, SamplingParams
from aios_kernel.errors import Busy, InvalidRequest, SnapshotError, UnknownModel, Unsupported
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import LlmChat, Message, Sampling

GREEDY = SamplingParams()
ENGINES = ["torch", "fake", "openai", "llamacpp-float32", "llamacpp-q8_0", "vllm-inprocess"]
SLOTS = 8


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, make_engine: Callable[..., Engine]) -> Generator[Callable[..., Engine]]:
    if request.param == "torch":
        yield lambda kv_tokens=1024: make_engine(kv_tokens=kv_tokens)
    elif request.param == "fake":
        yield lambda kv_tokens=1024: fake_engine(kv_tokens)
    elif request.param.startswith("llamacpp"):
        file = request.getfixturevalue("gguf")("tiny", request.param.partition("-")[2])
        with ExitStack() as opened:
            yield lambda kv_tokens=1024: opened.enter_context(closing(llamacpp_engine(file, kv_tokens)))
    elif request.param == "vllm-inprocess":
        make_vllm = request.getfixturevalue("make_vllm")
        yield lambda kv_tokens=1024: make_vllm(kv_tokens)
    else:
        front = request.getfixturevalue("front")
        with ExitStack() as opened:
            yield lambda kv_tokens=1024: opened.enter_context(closing(Questions(front)))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Generator[Config]:
    """Our own HTTP front, with the fake model behind it; gives how to reach it."""
    common: dict[str, Any] = {"kernel": "inprocess", "embedder": "hash", "vectors": "exact", "policy": "fifo"}
    home = str(tmp_path_factory.mktemp("front"))
    config = Config(home=home, model="fake", http="127.0.0.1:0", kv_tokens=1 << 20, **common)
    running = InProcessKernel(config)
    assert running.kernel is not None
    yield Config(base_url=f"{running.kernel.http_url}/v1", api_key=token_file_of(config).read_text())
    running.stop()


class Questions:
    """The openai engine: a prompt of so many tokens becomes a question of as many, whose answer has no end."""

    def __init__(self, front: Config) -> None:
        self._engine: Any = openai_model("fake", front.base_url, api_key=front.api_key, slots=SLOTS).engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def open(self, tokens: list[int], *, sampling: SamplingParams, **options: Any) -> Context:
        content = "." * (4 * len(tokens) - 11) + "\nponder" if len(tokens) > 2 else "ponder"
        call = LlmChat(messages=[Message("user", content)], sampling=Sampling(seed=sampling.seed))
        return self._engine.open(Prompt(call), sampling=sampling, **options)


def stepped(engine: Engine) -> Engine:
    """The engine, if the kernel says how many tokens each of its steps computes."""
    if not engine.capabilities.step_control:
        pytest.skip("no step control")
    return engine


def llamacpp_engine(file: Path, kv_tokens: int) -> Engine:
    from aios_kernel.engine.llamacpp.engine import LlamaEngine
    from aios_kernel.engine.llamacpp.model import LlamaModel

    return LlamaEngine(LlamaModel(file), kv_tokens=kv_tokens, kind=0, threads=1)


def fake_engine(kv_tokens: int) -> Engine:
    """The fake engine, with enough words for the prompts of these tests, none of which holds a reply."""
    model = fake_model(kv_tokens=kv_tokens)
    model.codec.encode(" ".join(f"word{number}" for number in range(250)))
    return model.engine


def finish(engine: Engine, context: Context, n_tokens: int) -> list[int]:
    out: list[int] = []
    while len(out) < n_tokens:
        (output,) = engine.step([(context, 64)])
        assert output.error is None
        out += [output.token] if output.token is not None else []
    return out


def state(engine: Engine, *contexts: Context) -> Any:
    return engine.kv_free(), [(list(c.tokens), c.computed, c.cached) for c in contexts]


def test_capabilities_are_sizes_of_whole_blocks(make: Any) -> None:
    engine = make(1000)
    caps = engine.capabilities
    assert caps.step_control == (engine.name != "openai")
    assert caps.kv_tokens == engine.kv_free()
    assert caps.kv_tokens % caps.block_size == 0 or engine.name != "torch"


def test_a_context_emits_and_goes_on(make: Any, prompt: Any) -> None:
    engine = make()
    context = engine.open(prompt(40), sampling=GREEDY)
    opened = len(context.tokens)  # a server's engine counts one for its request
    assert context.pending == 40
    assert (opened, context.computed) == ((41, 1) if engine.name == "openai" else (40, 0))
    answer = finish(engine, context, 3)
    assert context.tokens[opened:] == answer
    assert context.pending == 1


def test_what_an_engine_lacks_is_refused_by_name(make: Any, prompt: Any) -> None:
    engine = make()
    context = engine.open(prompt(40), sampling=GREEDY)
    finish(engine, context, 1)
    caps, before = engine.capabilities, len(context.tokens)
    refused = {
        "forks": (caps.fork, lambda: engine.fork(context)),
        "snapshots": (caps.snapshot, lambda: engine.snapshot(context)),
        "embeddings": (caps.embed, lambda: engine.embed([prompt(5)])),
        "LoRA": (caps.lora, lambda: engine.open(prompt(5), sampling=GREEDY, lora="mine")),
        "appended": (caps.step_control, lambda: engine.append(context, [1])),
    }
    for what, (can, use) in refused.items():
        if not can:
            with pytest.raises(Unsupported, match=what):
                use()
    assert len(context.tokens) == before
    finish(engine, context, 1)


def test_more_contexts_than_places_are_refused(make: Any, prompt: Any) -> None:
    engine = make()
    if engine.capabilities.step_control:
        pytest.skip("the kernel says who runs")
    contexts = [engine.open(prompt(20), sampling=GREEDY) for _ in range(SLOTS)]
    before = state(engine, *contexts)
    with pytest.raises(KvExhausted):
        engine.open(prompt(20), sampling=GREEDY)
    assert state(engine, *contexts) == before
    engine.release(contexts.pop())
    contexts.append(engine.open(prompt(20), sampling=GREEDY))
    for context in contexts:
        assert finish(engine, context, 1)


def test_a_prompt_emits_once_it_is_computed(make: Any, prompt: Any) -> None:
    engine = stepped(make())
    context = engine.open(prompt(40), sampling=GREEDY)
    assert context.pending == 40
    (first,) = engine.step([(context, 25)])
    assert (first.computed, first.token, context.pending) == (25, None, 15)
    (second,) = engine.step([(context, 1000)])
    assert (second.computed, context.pending) == (15, 1)
    assert context.tokens[-1] == second.token
    (third,) = engine.step([(context, 1)])
    assert (third.computed, len(context.tokens)) == (1, 42)


def test_outputs_are_in_the_order_of_the_plan(make: Any, prompt: Any) -> None:
    engine = make()
    contexts = [engine.open(prompt(length), sampling=GREEDY) for length in (30, 1, 17)]
    outputs = engine.step([(context, 1000) for context in contexts])
    assert [output.context for output in outputs] == contexts
    assert not engine.capabilities.step_control or [output.computed for output in outputs] == [30, 1, 17]


def test_need_is_what_a_step_takes(make: Any, prompt: Any) -> None:
    engine = stepped(make())
    context = engine.open(prompt(70), sampling=GREEDY)
    for n_tokens in (5, 11, 1, 30, 23, 1, 1):
        before, need = engine.kv_free(), engine.kv_need(context, n_tokens)
        engine.step([(context, n_tokens)])
        assert before - engine.kv_free() == need


def test_release_gives_everything_back(make: Any, prompt: Any) -> None:
    engine = make()
    free = engine.kv_free()
    contexts = [engine.open(prompt(length), sampling=GREEDY) for length in (5, 50, 100)]
    for context in contexts:
        finish(engine, context, 20)
        engine.release(context)
        engine.release(context)  # twice does no harm
    assert engine.kv_free() == free


def test_exhaustion_changes_nothing(make: Any, prompt: Any) -> None:
    engine = stepped(make(128))
    small, large = engine.open(prompt(60), sampling=GREEDY), engine.open(prompt(120, seed=1), sampling=GREEDY)
    finish(engine, small, 3)
    before = state(engine, small, large)
    with pytest.raises(KvExhausted):
        engine.step([(small, 1), (large, 120)])
    assert state(engine, small, large) == before
    engine.step([(large, 64)])
    engine.release(small)
    assert finish(engine, large, 1)


def test_forced_tokens_come_out_and_the_own_choice_is_reported(make: Any, prompt: Any) -> None:
    engine = stepped(make())
    forced = (3, 1, 4, 1, 5)
    context = engine.open(prompt(10), sampling=SamplingParams(forced=forced))
    tokens, choices = [], []
    while len(tokens) < len(forced):
        (output,) = engine.step([(context, 64)])
        tokens.append(output.token)
        choices.append(output.argmax)
    assert tuple(tokens) == forced
    assert all(choice is not None for choice in choices)


def test_snapshot_frees_and_restore_continues(make: Any, prompt: Any) -> None:
    engine = make()
    if not engine.capabilities.snapshot:
        pytest.skip("no snapshots")
    free = engine.kv_free()
    straight = engine.open(prompt(40), sampling=GREEDY)
    expected = finish(engine, straight, 12)
    engine.release(straight)
    context = engine.open(prompt(40), sampling=GREEDY)
    begun = finish(engine, context, 5)
    snapshot = engine.snapshot(context)
    assert engine.kv_free() == free
    assert (len(snapshot.tokens), snapshot.computed) == (45, 44)
    assert snapshot.fingerprint == engine.fingerprint
    context = engine.restore(snapshot)
    assert begun + finish(engine, context, 7) == expected
    engine.release(context)
    assert engine.kv_free() == free


def test_restore_refuses_a_stranger_and_a_full_pool(make: Any, prompt: Any) -> None:
    engine = make(128)
    if not engine.capabilities.snapshot:
        pytest.skip("no snapshots")
    context = engine.open(prompt(60), sampling=GREEDY)
    finish(engine, context, 2)
    snapshot = engine.snapshot(context)
    other = engine.open(prompt(100, seed=1), sampling=GREEDY)
    finish(engine, other, 2)
    before = state(engine, other)
    with pytest.raises(KvExhausted):
        engine.restore(snapshot)
    assert state(engine, other) == before
    engine.release(other)
    assert finish(engine, engine.restore(snapshot), 1)
    snapshot.fingerprint = "another engine"
    with pytest.raises(SnapshotError, match="another engine"):
        engine.restore(snapshot)


def test_fork_is_independent(make: Any, prompt: Any) -> None:
    engine = make()
    if not engine.capabilities.fork:
        pytest.skip("no forks")
    context = engine.open(prompt(21), sampling=GREEDY)
    finish(engine, context, 3)
    twin = engine.fork(context)
    assert (twin.tokens, twin.computed) == (context.tokens, context.computed)
    expected = finish(engine, context, 20)
    engine.release(context)
    assert finish(engine, twin, 20) == expected


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_fork_at_a_place_begins_anew_there(make: Any, prompt: Any, steps: int) -> None:
    engine = make()
    if not engine.capabilities.fork:
        pytest.skip("no forks")
    context = engine.open(prompt(37), sampling=GREEDY)
    answer = finish(engine, context, steps)
    twin = engine.fork(context, at=37, sampling=SamplingParams(forced=(5,)))
    assert (twin.tokens, context.tokens[37:]) == (prompt(37), answer)
    assert (twin.cached, twin.pending) == ((36, 1) if steps else (0, 37))
    assert finish(engine, twin, 1) == [5]
    expected = finish(engine, context, 20)
    engine.release(context)
    again = engine.fork(twin, at=37, sampling=GREEDY)
    engine.release(twin)
    assert finish(engine, again, 20 + steps) == [*answer, *expected]
    for place in (0, 99):
        with pytest.raises(ValueError, match="cannot be forked"):
            engine.fork(again, at=place)
    engine.release(again)
    assert engine.kv_free() == engine.capabilities.kv_tokens


@pytest.fixture
def adapter_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of the model that `make` serves; gives its folder."""
    if not str(request.node.callspec.params["make"]).startswith("llamacpp"):
        return request.getfixturevalue("lora_folder")
    checkpoint = request.getfixturevalue("gguf")("tiny", "float32").parent
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    write = request.getfixturevalue("lora_writer")
    return lambda seed=0: write(tmp_path / f"tiny-{seed}", model, seed=seed)


def test_adapters_are_loaded_used_and_unloaded(make: Any, prompt: Any, adapter_folder: Any) -> None:
    engine = make(4096)
    if not engine.capabilities.lora or engine.name == "vllm-inprocess":  # which has those that were named at its start
        pytest.skip("loads no adapters while it serves")
    assert isinstance(engine, LoraAdapters)
    folder, free = str(adapter_folder()), engine.kv_free()
    plain = engine.open(prompt(40), sampling=GREEDY)
    expected = finish(engine, plain, 12)
    with pytest.raises(UnknownModel, match='"french"'):
        engine.open(prompt(40), sampling=GREEDY, lora="french")
    engine.load_lora("french", folder)
    engine.load_lora("french", folder)  # once more does no harm
    assert list(engine.loras()) == ["french"]
    with pytest.raises(InvalidRequest, match="weights are others"):
        engine.load_lora("french", str(adapter_folder(seed=1)))
    context = engine.open(prompt(40), sampling=GREEDY, lora="french")
    assert context.cached == 0  # the plain context's KV is another
    spoken = finish(engine, context, 12)
    assert spoken != expected
    with pytest.raises(Busy, match="in use"):
        engine.unload_lora("french")
    assert engine.kv_free() < free - engine.loras()["french"]
    for used in (plain, context):
        engine.release(used)
    assert engine.kv_free() == free
    engine.prefetch_lora("french")
    assert engine.kv_free() == free
    engine.unload_lora("french")
    assert not engine.loras()
    for call in (engine.unload_lora, engine.prefetch_lora):
        with pytest.raises(UnknownModel):
            call("french")


def test_vectors_are_of_unit_length_and_in_order(make: Any, prompt: Any) -> None:
    engine = make()
    if not engine.capabilities.embed:
        pytest.skip("no embeddings")
    texts = [prompt(length, seed=length) for length in (5, 1, 40, 5)] + [prompt(5, seed=5)]
    together = [vector for vectors in engine.embed(texts) for vector in vectors]
    assert len(together) == len(texts)
    assert len({len(vector) for vector in together}) == 1
    for tokens, vector in zip(texts, together, strict=True):
        assert math.hypot(*vector) == pytest.approx(1.0, abs=1e-5)
        ((alone,),) = engine.embed([tokens])
        assert alone == pytest.approx(vector, abs=1e-5)
    assert together[0] == pytest.approx(together[4], abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-3)
    assert list(engine.embed([])) == []


def test_embedding_leaves_contexts_and_pool_alone(make: Any, prompt: Any) -> None:
    engine, undisturbed = make(), make()
    if not engine.capabilities.embed:
        pytest.skip("no embeddings")
    expected = finish(undisturbed, undisturbed.open(prompt(30), sampling=GREEDY), 10)
    context = engine.open(prompt(30), sampling=GREEDY)
    begun = finish(engine, context, 2)
    before = state(engine, context)
    work = engine.embed([prompt(70, seed=seed) for seed in range(4)])
    next(work)
    assert state(engine, context) == before
    begun += finish(engine, context, 4)
    list(work)
    left_midway = engine.embed([prompt(70)] * 4)
    next(left_midway)
    assert begun + finish(engine, context, 4) == expected
    assert engine.open(prompt(70), sampling=GREEDY).cached == 0


class Life(RuleBasedStateMachine):
    """Random opens, steps, appends, forks, snapshots, restores and releases on a small pool.

    What is drawn depends on nothing that happened: what former lives left in the prefix cache decides whether a
    snapshot finds room, and Hypothesis wants the same choices to have the same ones behind them.
    """

    make: Callable[[int], Engine]

    @initialize(seed=st.integers(0, 1 << 20))
    def begin(self, seed: int) -> None:
        self.engine = type(self).make(256)
        self.caps = self.engine.capabilities
        self.random = random.Random(seed)
        self.live: list[Context] = []
        self.stored: list[Any] = []

    @rule(length=st.integers(1, 90), seed=st.integers(0, 2), salt=st.sampled_from([b"", b"x"]))
    def open(self, length: int, seed: int, salt: bytes) -> None:
        tokens = [number * (seed + 1) % 190 for number in range(length)]
        sampling = SamplingParams(temperature=0.5, seed=seed)
        try:
            self.live.append(self.engine.open(tokens, sampling=sampling, salt=salt))
        except KvExhausted:
            assert not self.caps.step_control
            assert len(self.live) == SLOTS

    @rule(picks=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), min_size=1, max_size=4))
    def step(self, picks: list[tuple[int, int]]) -> None:
        counts = {place % len(self.live): n_tokens for place, n_tokens in picks} if self.live else {}
        plan = [(self.live[place], n_tokens) for place, n_tokens in counts.items()]
        need = sum(self.engine.kv_need(context, min(n, context.pending)) for context, n in plan)
        free = self.engine.kv_free()
        before = [(context.computed, len(context.tokens)) for context, _ in plan]
        try:
            outputs = self.engine.step(plan)
        except KvExhausted:
            assert need > free
            assert before == [(context.computed, len(context.tokens)) for context, _ in plan]
            return
        assert need <= free
        assert free - self.engine.kv_free() <= need or not self.caps.step_control
        for output, (context, n_tokens) in zip(outputs, plan, strict=True):
            assert output.error is None
            assert 0 <= output.computed <= n_tokens or not self.caps.step_control
            if output.token is None and not self.caps.step_control:
                continue  # nothing has arrived
            assert (output.token is not None) == (context.pending == 1 and context.tokens[-1] == output.token)

    @rule(length=st.integers(1, 30))
    def append(self, length: int) -> None:
        if not (self.live and self.caps.step_control):
            return
        self.engine.append(self.random.choice(self.live), list(range(length)))

    @rule()
    def fork(self) -> None:
        if not (self.live and self.caps.fork):
            return
        try:
            self.live.append(self.engine.fork(self.random.choice(self.live)))
        except KvExhausted:
            assert self.engine.name == "fake"  # which shares no blocks

    @rule()
    def snapshot(self) -> None:
        if not (self.live and self.caps.snapshot):
            return
        context = self.live.pop(self.random.randrange(len(self.live)))
        self.stored.append(self.engine.snapshot(context))

    @rule()
    def restore(self) -> None:
        if not self.stored:
            return
        snapshot = self.stored.pop(self.random.randrange(len(self.stored)))
        try:
            self.live.append(self.engine.restore(snapshot))
        except KvExhausted:
            self.stored.append(snapshot)

    @rule()
    def release(self) -> None:
        if not self.live:
            return
        self.engine.release(self.live.pop(self.random.randrange(len(self.live))))

    @invariant()
    def within_the_pool(self) -> None:
        if hasattr(self, "engine"):
            assert 0 <= self.engine.kv_free() <= self.engine.capabilities.kv_tokens

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for context in self.live:
                self.engine.release(context)
            assert self.engine.kv_free() == self.engine.capabilities.kv_tokens


@pytest.mark.timeout(300)
def test_no_block_is_lost_in_a_random_life(make: Any) -> None:
    engines: list[Engine] = []

    def fresh(kv_tokens: int) -> Engine:
        # One engine for all lives: what a life leaves behind in the prefix cache meets the next one.
        if not engines:
            engines.append(make(kv_tokens))
        return engines[0]

    machine = type("Machine", (Life,), {"make": staticmethod(fresh)})
    lives = 60 if fresh(256).capabilities.step_control else 10  # each of the openai engine's steps waits for its server
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
