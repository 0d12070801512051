"""Snapshots: exact however tokens are chosen, beside running steps, on disk, in another process; what is refused."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from aios_kernel.engine.load import load_model
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.errors import SnapshotError
from aios_kernel.syscalls import LlmChat, Message

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=123)
CALL = LlmChat(
    messages=[Message(role="user", content="calculate 2 + 2")],
    schema={
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
)
STEPS = 12
CHILD = """
import json, sys
from pathlib import Path
from aios_kernel.engine.load import load_model
from aios_kernel.errors import SnapshotError

folder, dtype, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
model = load_model("demo", device="cpu", dtype=dtype, kv_tokens=2048, threads=1)
said = {}
for path in sorted(folder.glob("*.safetensors")):
    try:
        context = model.engine.restore(model.engine.load_snapshot(path, model.codec.load_grammar))
    except SnapshotError as error:
        said[path.stem] = error.message
        continue
    said[path.stem] = [model.engine.step([(context, 64)])[0].token for _ in range(steps)]
print(json.dumps(said))
"""


@pytest.fixture
def engine(make_engine: Any) -> Any:
    made = make_engine(kv_tokens=512)
    made._swapper.mover.inline_bytes = 0  # every copy runs beside the steps, as those of large contexts do
    return made


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu", kv_tokens=2048)


def begun(model: Any, mode: str) -> Any:
    """A context of the demo model in the middle of its answer."""
    grammar = model.codec.grammar(CALL) if mode == "grammar" else None
    sampling = GREEDY if mode == "greedy" else SAMPLED
    context = model.engine.open(model.codec.encode_chat(CALL), sampling=sampling, grammar=grammar)
    emitted = 0
    while emitted < 5:
        emitted += model.engine.step([(context, 64)])[0].token is not None
    return context


def tokens(engine: Any, context: Any, count: int) -> list[int]:
    out = []
    for _ in range(count):
        (output,) = engine.step([(context, 64)])
        assert output.error is None
        out.append(output.token)
    return out


def test_another_process_continues_exactly_or_refuses(demo: Any, tmp_path: Path) -> None:
    expected = {}
    for mode in ("greedy", "sampled", "grammar"):
        context = begun(demo, mode)
        snapshot = demo.engine.snapshot(context)
        snapshot.save(tmp_path / f"{mode}.safetensors")
        expected[mode] = tokens(demo.engine, demo.engine.restore(snapshot), STEPS)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), dtype, str(STEPS)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for dtype in ("float32", "bfloat16")
    ]
    same, other = (json.loads(child.communicate(timeout=120)[0]) for child in children)
    assert same == expected
    assert all("this engine is" in refusal for refusal in other.values())
    assert set(other) == set(expected)


@pytest.mark.parametrize("mode", ["greedy", "sampled", "grammar"])
def test_a_snapshot_in_the_middle_changes_nothing(demo: Any, mode: str, tmp_path: Path) -> None:
    straight = tokens(demo.engine, begun(demo, mode), STEPS)
    context = demo.engine.restore(demo.engine.snapshot(begun(demo, mode)))
    said = tokens(demo.engine, context, 4)
    demo.engine.snapshot(context).save(tmp_path / "s")
    loaded = demo.engine.load_snapshot(tmp_path / "s", demo.codec.load_grammar)
    assert said + tokens(demo.engine, demo.engine.restore(loaded), STEPS - 4) == straight


def test_a_file_is_private_and_of_the_standard_format(engine: Any, prompt: Any, tmp_path: Path) -> None:
    context = engine.open(prompt(100), sampling=GREEDY)
    engine.step([(context, 100)])
    snapshot = engine.snapshot(context)
    path = tmp_path / "s.safetensors"
    snapshot.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with safe_open(path, framework="pt") as file:
        data = [file.get_tensor(name) for name in sorted(file.keys())]
    assert all(map(torch.equal, data, snapshot.data))
    assert os.listdir(tmp_path) == ["s.safetensors"]
    loaded = engine.load_snapshot(path)
    assert all(map(torch.equal, loaded.data, snapshot.data))
    assert (loaded.tokens, loaded.computed, loaded.nbytes) == (snapshot.tokens, snapshot.computed, snapshot.nbytes)


def test_blocks_that_are_still_there_are_shared_after_a_trip_to_the_disk(
    engine: Any, prompt: Any, tmp_path: Path
) -> None:
    context = engine.open(prompt(100), sampling=GREEDY)
    engine.step([(context, 100)])
    twin, free = engine.fork(context), engine.kv_free()
    engine.snapshot(twin).save(tmp_path / "s")
    restored = engine.restore(engine.load_snapshot(tmp_path / "s"))
    assert restored.blocks[:6] == context.blocks[:6]
    assert engine.kv_free() == free - 16  # its tail alone


DAMAGES: dict[str, Any] = {
    "cut short": lambda raw: raw[: len(raw) * 2 // 3],
    "cut in the header": lambda raw: raw[:100],
    "empty": lambda raw: b"",
    "a changed number": lambda raw: raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:],
    "a changed token": lambda raw: raw.replace(b'\\"computed\\":100', b'\\"computed\\":101'),
    "a changed seed": lambda raw: raw.replace(b'\\"seed\\":0', b'\\"seed\\":1'),
    "something else": lambda raw: b"hello" * 100,
    "something longer": lambda raw: raw + b"\0",
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_file_is_refused_and_nothing_else_is_harmed(
    engine: Any, oracles: Any, prompt: Any, tmp_path: Path, damage: str
) -> None:
    context, other = (engine.open(prompt(100, seed), sampling=GREEDY) for seed in range(2))
    engine.step([(context, 100), (other, 100)])
    snapshot = engine.snapshot(context)
    path = tmp_path / "s"
    snapshot.save(path)
    raw = path.read_bytes()
    damaged = DAMAGES[damage](raw)
    assert damaged != raw
    path.write_bytes(damaged)
    free = engine.kv_free()
    with pytest.raises(SnapshotError, match="s"):
        engine.load_snapshot(path)
    assert engine.kv_free() == free
    oracles("llama").check(prompt(100, 1), [other.tokens[100], *tokens(engine, other, 5)])
    oracles("llama").check(prompt(100, 0), [snapshot.tokens[100], *tokens(engine, engine.restore(snapshot), 5)])


def test_a_file_that_vanished_is_told(engine: Any, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot be read"):
        engine.load_snapshot(tmp_path / "nothing")


def test_a_full_disk_leaves_no_file_and_the_snapshot_whole(
    engine: Any, oracles: Any, prompt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = engine.open(prompt(60), sampling=GREEDY)
    engine.step([(context, 100)])
    snapshot = engine.snapshot(context)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match="No space left") as caught:
        snapshot.save(tmp_path / "s")
    assert caught.value.fix
    assert os.listdir(tmp_path) == []
    with pytest.raises(SnapshotError, match="cannot be written"):
        snapshot.save(tmp_path / "no such folder" / "s")
    oracles("llama").check(prompt(60), [snapshot.tokens[60], *tokens(engine, engine.restore(snapshot), 5)])


def test_a_write_that_stops_midway_leaves_no_file(engine: Any, prompt: Any, tmp_path: Path) -> None:
    context = engine.open(prompt(60), sampling=GREEDY)
    engine.step([(context, 100)])
    snapshot = engine.snapshot(context)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (snapshot.nbytes // 2, hard))
    try:
        with pytest.raises(SnapshotError, match="cannot be written"):
            snapshot.save(tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []
    snapshot.save(tmp_path / "s")


class SlowCopies:
    """Holds the copying thread up until it is told to go on."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        read, write = engine._memory.read_into, engine._memory.write

        def slow_read(*arguments: Any) -> None:
            assert self.go.wait(20)
            read(*arguments)

        def slow_write(*arguments: Any) -> None:
            assert self.go.wait(20)
            write(*arguments)

        monkeypatch.setattr(engine._memory, "read_into", slow_read)
        monkeypatch.setattr(engine._memory, "write", slow_write)


def test_steps_go_on_while_a_context_is_copied_out_and_in(
    engine: Any, oracles: Any, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, other = (engine.open(prompt(60, seed), sampling=GREEDY) for seed in range(2))
    engine.step([(context, 100), (other, 100)])
    slow = SlowCopies(engine, monkeypatch)
    free = engine.kv_free()
    snapshot = engine.snapshot(context)
    assert engine.kv_free() > free
    answer = tokens(engine, other, 5)
    assert not snapshot.copied.done()
    restored = engine.restore(snapshot)
    answer += tokens(engine, other, 5)
    assert not restored.arrival.done()
    slow.go.set()
    oracles("llama").check(prompt(60, 1), [other.tokens[60], *answer])
    oracles("llama").check(prompt(60), [snapshot.tokens[60], *tokens(engine, restored, 10)])


def test_a_tail_that_a_fork_has_filled_since_is_left_to_the_fork(engine: Any, oracles: Any, prompt: Any) -> None:
    """The two share the tail's first tokens and part behind them: what the fork published must not be written to."""
    context = engine.open(prompt(10), sampling=GREEDY)
    engine.step([(context, 100)])
    fork = engine.fork(context)
    engine.append(fork, prompt(3, seed=1))
    snapshot = engine.snapshot(context)
    tokens(engine, fork, 10)  # now the tail is full, published and the fork's alone
    stored = engine.snapshot(fork)
    restored = engine.restore(snapshot)
    oracles("llama").check(prompt(10), [snapshot.tokens[10], *tokens(engine, restored, 10)])
    back = engine.restore(stored)
    tokens(engine, back, 10)
    oracles("llama").check(back.tokens[:14], back.tokens[14:])


def test_a_context_on_its_way_in_can_be_cancelled(engine: Any, prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    context = engine.open(prompt(60), sampling=GREEDY)
    engine.step([(context, 100)])
    slow = SlowCopies(engine, monkeypatch)
    restored = engine.restore(engine.snapshot(context))
    threading.Timer(0.05, slow.go.set).start()
    engine.release(restored)
    assert restored.arrival is None or restored.arrival.done()
    assert engine.kv_free() == engine.capabilities.kv_tokens


def test_a_copy_that_fails_costs_its_own_context_only(
    engine: Any, oracles: Any, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, other = (engine.open(prompt(60, seed), sampling=GREEDY) for seed in range(2))
    engine.step([(context, 100), (other, 100)])

    def fail(*_arguments: Any) -> None:
        raise MemoryError("no memory, as the test wants it")

    monkeypatch.setattr(engine._memory, "read_into", fail)
    snapshot = engine.snapshot(context)
    restored = engine.restore(snapshot)
    outputs = engine.step([(restored, 1), (other, 1)])
    assert "no memory" in (outputs[0].error or "")
    assert outputs[1].error is None
    engine.release(restored)
    oracles("llama").check(prompt(60, 1), [*other.tokens[60:], *tokens(engine, other, 5)])
    engine.release(other)
    assert engine.kv_free() == engine.capabilities.kv_tokens


def test_no_host_memory_leaves_the_context_where_it_is(
    engine: Any, oracles: Any, prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = engine.open(prompt(60), sampling=GREEDY)
    engine.step([(context, 100)])

    def fail(_nbytes: int) -> None:
        raise MemoryError("no memory, as the test wants it")

    monkeypatch.setattr(engine._swapper._host, "take", fail)
    with pytest.raises(SnapshotError, match="no memory"):
        engine.snapshot(context)
    oracles("llama").check(prompt(60), [context.tokens[60], *tokens(engine, context, 5)])


def test_host_memory_is_used_again(engine: Any, prompt: Any) -> None:
    context = engine.open(prompt(60), sampling=GREEDY)
    engine.step([(context, 100)])
    places = set()
    for _ in range(3):
        snapshot = engine.snapshot(context)
        places.add(snapshot.data[0].data_ptr())
        context = engine.restore(snapshot)
        tokens(engine, context, 1)
        del snapshot
    assert len(places) == 1
