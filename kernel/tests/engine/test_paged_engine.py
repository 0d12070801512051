"""The engine on the kernels of a GPU, run in Triton's interpreter: token-exact, in the contract's key situations."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.torch.paged import memory as paged_memory
from aios_kernel.engine.torch.paged.ahead import RunAhead
from aios_kernel.engine.torch.paged.forward import PagedForward
from aios_kernel.engine.torch.paged.memory import served
from aios_kernel.errors import ConfigError

Prompt = Callable[..., list[int]]
GREEDY = SamplingParams()
KINDS = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "phi3", "qwen3_moe"))]
"""Plain; alternating windows and capped scores; a window everywhere; experts."""
pytestmark = pytest.mark.skipif(not served(torch.device("cpu")), reason="Triton's interpreter is not here")


@pytest.fixture
def make_paged(oracles: Any) -> Callable[..., TorchEngine]:
    def make(family: str = "llama", kv_tokens: int = 2048, **options: Any) -> TorchEngine:
        model = copy.deepcopy(oracles(family).model)
        return TorchEngine(model, kv_tokens=kv_tokens, native=False, paged=True, **options)

    return make


@pytest.fixture
def paged(make_paged: Any, drive: Any) -> Any:
    return lambda family: drive(make_paged(family))


@pytest.mark.parametrize("family", KINDS)
def test_batches_chunks_and_prefixes(paged: Any, oracles: Any, prompt: Prompt, family: str) -> None:
    oracle, driver = oracles(family), paged(family)
    shared = prompt(140)
    prompts = [[*shared, *prompt(5, seed=1)], prompt(3), prompt(41), [*shared, *prompt(20, seed=2)]]
    first = driver.open(prompts[0])
    begun = driver.answer(first, 1, chunk=100)
    contexts = [first, *(driver.open(tokens) for tokens in prompts[1:])]
    assert contexts[3].cached >= 128
    answers = driver.answers(contexts, [5, 5, 3, 4], chunk=50)
    answers[0] = begun + answers[0]
    for tokens, answer in zip(prompts, answers, strict=True):
        oracle.check(tokens, answer)
    turn = [*prompts[0], *answers[0], *prompt(9, seed=3)]
    driver.engine.release(first)
    again = driver.open(turn)
    assert again.cached >= 144
    oracle.check(turn, driver.answer(again, 3, chunk=7))


def test_the_others_prefix_is_attended_to_together(paged: Any, prompt: Prompt, monkeypatch: Any) -> None:
    """The two contexts with a common beginning are one unit of the prefix kernel."""
    driver, launched = paged("llama"), []
    original = paged_memory.launch

    def launch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        launched.append((kernel.fn.__name__, grid))
        original(kernel, grid, *arguments, **constants)

    contexts = [driver.open([*prompt(160), *prompt(4, seed=seed)]) for seed in range(3)]
    driver.answers(contexts, [1, 1, 1], chunk=1000)
    monkeypatch.setattr(paged_memory, "launch", launch)
    driver.engine.step([(context, 1) for context in contexts])
    assert [name for name, _ in launched[:4]] == ["put", "decode", "prefix", "merge"]
    assert {grid[0] for name, grid in launched if name == "prefix"} == {1}


def test_fork_append_snapshot_and_restore(paged: Any, oracles: Any, prompt: Prompt) -> None:
    oracle, driver = oracles("mistral"), paged("mistral")
    context = driver.open(prompt(37))
    begun = driver.answer(context, 3)
    twin = driver.engine.fork(context)
    driver.engine.append(twin, prompt(5))
    said = list(twin.tokens)
    snapshot = driver.engine.snapshot(context)
    other = driver.open(prompt(100, seed=5))
    driver.answer(other, 1, chunk=1000)
    back = driver.engine.restore(snapshot)
    rest, mine = driver.answers([back, twin], [5, 5])
    oracle.check(prompt(37), begun + rest)
    oracle.check(said, mine)
    free = driver.engine.kv_free()
    for held in (back, twin, other):
        driver.engine.release(held)
    assert driver.engine.kv_free() > free


def test_snapshots_of_other_attentions_are_refused(make_paged: Any, make_engine: Any) -> None:
    assert make_paged().fingerprint != make_engine().fingerprint


def test_nothing_paged_without_triton(make_paged: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(paged_memory, "served", lambda _device: False)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(ConfigError, match="no Triton"):
        make_paged()


def test_a_step_in_two_phases(paged: Any, oracles: Any, prompt: Prompt) -> None:
    """Between them others come and go; the result is that of a whole step."""
    driver = paged("llama")
    engine = driver.engine
    assert engine.capabilities.two_phase
    context, gone = driver.open(prompt(20)), driver.open(prompt(50, seed=1))
    driver.answers([context, gone], [1, 1], chunk=1000)
    launched = engine.launch([(context, 1)])
    assert context.pending == 1
    engine.release(gone)
    late = driver.open(prompt(33, seed=2))
    (output,) = engine.collect(launched)
    assert output.token == context.tokens[-1]
    rest, answer = driver.answers([context, late], [3, 3], chunk=1000)
    oracles("llama").check(prompt(20), [*context.tokens[20:22], *rest])
    oracles("llama").check(prompt(33, seed=2), answer)


def test_what_fails_late_ends_only_who_is_concerned(paged: Any, oracles: Any, prompt: Prompt, monkeypatch: Any) -> None:
    """A device tells of a fault when its results are fetched."""
    from aios_kernel.engine.torch.paged import choices

    driver = paged("llama")
    good, bad = driver.open(prompt(9)), driver.open(prompt(10))
    finish = choices.finish

    def late(choosing: Any) -> Any:
        if bad in choosing.contexts:
            raise RuntimeError("an error of the device")
        return finish(choosing)

    monkeypatch.setattr(choices, "finish", late)
    outputs = driver.engine.step([(good, 100), (bad, 100)])
    assert "an error of the device" in (outputs[1].error or "")
    assert outputs[0].error is None
    oracles("llama").check(prompt(9), [outputs[0].token, *driver.answer(good, 2)])


class Tape(TorchDispatchMode):
    """Stands for a CUDA graph: repeats recorded operations on recorded tensors; no Python of ours runs again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host asks for a number while it is recorded")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.steps.append(lambda: _repeat(func, args, kwargs, out))
        return out


def _repeat(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(out), strict=True):
        if isinstance(new, torch.Tensor) and new is not old and new.data_ptr() != old.data_ptr():
            old.copy_(new)


@pytest.fixture
def recorder(monkeypatch: Any) -> Any:
    """Records by tape, the launches of kernels with the rest."""
    tapes: list[Tape] = []
    original = paged_memory.launch

    def launch(kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        def run() -> None:
            with torch._C._DisableTorchDispatch():
                original(kernel, grid, *arguments, **constants)

        if tapes and tapes[-1] in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
            tapes[-1].steps.append(run)
        run()

    def record(work: Any) -> Any:
        tape = Tape()
        tapes.append(tape)
        with tape:
            result = work()
        return result, lambda: [step() for step in tape.steps]

    monkeypatch.setattr(paged_memory, "launch", launch)
    return record


@pytest.mark.slow
def test_graphs_read_their_own_memory_only(
    make_paged: Any, drive: Any, oracles: Any, prompt: Prompt, recorder: Any
) -> None:
    """Recorded once a bucket, repeated over growing contexts, other contexts and shared prefixes: still token-exact."""
    engine, oracle = make_paged(), oracles("llama")
    forward = PagedForward(engine._runner, engine._memory, recorder)
    engine._paged, driver, calls = forward, drive(engine), []
    run = engine._runner.forward
    engine._runner.forward = lambda *arguments: (calls.append(len(arguments[0])), run(*arguments))[1]
    prompts = [prompt(5), prompt(30), [*prompt(140, seed=1), 7], [*prompt(140, seed=1), 9]]
    contexts = [driver.open(tokens) for tokens in prompts]
    firsts = driver.answers(contexts, [1, 1, 1, 1], chunk=1000)
    alone = driver.answer(contexts[0], 4)
    rest = driver.answers(contexts[:3], [6, 6, 6], chunk=1)
    assert forward.graphs is not None
    assert forward.graphs.recorded == 2
    assert calls[-2:] == [1, 4]  # the model's own code ran for the buckets of 1 and 4 rows, once each
    last = driver.answers(contexts, [3, 3, 3, 3], chunk=1)
    assert forward.graphs.recorded == 3
    assert calls[-1] == 4
    oracle.check(prompts[0], [*firsts[0], *alone, *rest[0], *last[0]])
    for row in (1, 2):
        oracle.check(prompts[row], [*firsts[row], *rest[row], *last[row]])
    oracle.check(prompts[3], [*firsts[3], *last[3]])


def test_what_cannot_be_recorded_runs_without(make_paged: Any, drive: Any, oracles: Any, prompt: Prompt) -> None:
    def refuse(_work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = make_paged()
    engine._paged = PagedForward(engine._runner, engine._memory, refuse)
    driver = drive(engine)
    oracles("llama").check(prompt(12), driver.answer(driver.open(prompt(12)), 4, chunk=1000))
    assert engine._paged.graphs.recorded == 0


def test_all_graphs_can_be_recorded_before(make_paged: Any, recorder: Any) -> None:
    engine = make_paged()
    engine._paged = PagedForward(engine._runner, engine._memory, recorder)
    engine._paged.graphs._buckets = (1, 2)
    engine.warm_up()
    assert engine._paged.graphs.recorded == 3


@pytest.fixture
def ahead(make_paged: Any, drive: Any, recorder: Any) -> Any:
    """A driver of an engine that begins decode steps before they are asked for, as one on a GPU does."""
    engine = make_paged()
    engine._paged = PagedForward(engine._runner, engine._memory, recorder)
    engine._ahead = RunAhead(engine._pool, engine._paged)
    return drive(engine)


@pytest.mark.slow
def test_the_next_step_is_begun_before_anybody_knows_the_tokens(ahead: Any, oracles: Any, prompt: Prompt) -> None:
    oracle, engine = oracles("llama"), ahead.engine
    contexts = [ahead.open(prompt(length)) for length in (13, 30, 47)]
    answers = ahead.answers(contexts, [8, 20, 20], chunk=1000)  # across the ends of blocks; one ends early
    assert engine._ahead.taken > 12
    for length, answer in zip((13, 30, 47), answers, strict=True):
        oracle.check(prompt(length), answer)
    for context in contexts:
        engine.release(context)
    assert engine.kv_free() == engine.capabilities.kv_tokens


@pytest.mark.slow
def test_who_joins_leaves_or_goes_on_otherwise(ahead: Any, oracles: Any, prompt: Prompt) -> None:
    """A step ahead serves those that still want it; the others' plans change, and nothing is lost."""
    oracle, engine = oracles("llama"), ahead.engine
    one, two = ahead.open(prompt(15)), ahead.open(prompt(31))
    begun = ahead.answers([one, two], [5, 5], chunk=1000)
    late = ahead.open(prompt(50, seed=1))
    taken = engine._ahead.taken
    more = ahead.answers([one, two, late], [1, 1, 1], chunk=1000)
    assert engine._ahead.taken == taken + 1
    more = [a + b for a, b in zip(more, ahead.answers([one, two, late], [6, 6, 6], chunk=1), strict=True)]
    oracle.check(prompt(50, seed=1), more[2])
    twin = engine.fork(one)
    snapshot = engine.snapshot(two)
    engine.append(late, prompt(4, seed=2))
    said = list(late.tokens)
    back = engine.restore(snapshot)
    rests = ahead.answers([one, twin, back, late], [6, 6, 6, 6], chunk=1)
    oracle.check(prompt(15), begun[0] + more[0] + rests[0])
    assert rests[1] == rests[0]
    oracle.check(prompt(31), begun[1] + more[1] + rests[2])
    oracle.check(said, rests[3])
    for context in (one, twin, back, late):
        engine.release(context)
    assert engine.kv_free() == engine.capabilities.kv_tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.9, seed=5, top_p=0.9), SamplingParams(forced=tuple(range(40, 60)))]
)
def test_what_is_drawn_ahead_is_what_would_be_drawn(
    ahead: Any, make_paged: Any, drive: Any, prompt: Prompt, sampling: SamplingParams
) -> None:
    plain = drive(make_paged())
    expected = plain.answer(plain.open(prompt(20), sampling=sampling), 12, chunk=1000)
    assert ahead.answer(ahead.open(prompt(20), sampling=sampling), 12, chunk=1000) == expected
    assert ahead.engine._ahead.taken > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2))
def test_random_lives(paged: Any, ahead: Any, oracles: Any, prompt: Prompt, seed: int) -> None:
    """Contexts are opened, forked, swapped, released and stepped in random order, with steps ahead and without."""
    oracle, driver, chooser = oracles("llama"), ahead if seed % 2 else paged("llama"), random.Random(seed)
    lives: list[list[Any]] = []
    for _ in range(30):
        act = chooser.random()
        if (act < 0.25 and len(lives) < 5) or not lives:
            tokens = prompt(chooser.choice([5, 17, 40]), seed=chooser.randrange(3))
            lives.append([tokens, driver.open(tokens), []])
        elif act < 0.35:
            said, context, got = chooser.choice(lives)
            lives.append([said, driver.engine.fork(context), list(got)])
        elif act < 0.5:
            life = chooser.choice(lives)
            life[1] = driver.engine.restore(driver.engine.snapshot(life[1]))
        elif act < 0.6 and len(lives) > 2:
            said, context, got = lives.pop(chooser.randrange(len(lives)))
            driver.engine.release(context)
            oracle.check(said, got)
        else:
            for _ in range(chooser.randint(1, 5)):
                outputs = driver.engine.step([(life[1], chooser.randint(1, 60)) for life in lives])
                for life, output in zip(lives, outputs, strict=True):
                    life[2] += [output.token] if output.token is not None else []
    for said, context, got in lives:
        oracle.check(said, got)
        driver.engine.release(context)
    assert driver.engine.kv_free() == driver.engine.capabilities.kv_tokens
