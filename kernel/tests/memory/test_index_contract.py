"""The vector index contract, over every index."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aios_kernel.errors import InternalError, KernelLocked
from aios_kernel.memory import ChromaIndex, ChromaStore, ExactIndex, Space, VectorIndex, chroma_worker

A, B = Space("u", "agent/a"), Space("u", "agent/b")
SPACES = [A, B, Space("u\0agent/a", ""), Space("v", "agent/a"), Space("u", "agent/a/b")]


def vectors(n: int, seed: int = 0, dimensions: int = 32) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((n, dimensions)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def ids(n: int, prefix: str = "n") -> list[str]:
    return [f"{prefix}{i}" for i in range(n)]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaIndex]:
    """One chroma worker for all tests: its start takes a second."""
    made = ChromaIndex(tmp_path_factory.mktemp("worker") / "chroma", "m")
    yield made
    made.close()


@pytest.fixture(params=["chroma", "chroma-graph", "exact"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VectorIndex]:
    if request.param == "chroma":
        made = request.getfixturevalue("worker")
        yield made
        for space in SPACES:
            made.drop(space)
        return
    made = ChromaStore(tmp_path / "chroma", "m") if request.param == "chroma-graph" else ExactIndex()
    yield made
    made.close()


def test_the_nearest_come_first_with_their_cosine(index: VectorIndex) -> None:
    stored = vectors(300)
    index.add(A, ids(300), stored)
    for query in vectors(10, seed=1):
        scores = stored @ query
        best = np.argsort(-scores)[:5]
        hits = index.search(A, query, 5)
        assert [hit.id for hit in hits] == [f"n{i}" for i in best]
        assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert index.search(A, stored[7], 1)[0].score == pytest.approx(1, abs=1e-5)


def test_only_allowed_ids_are_found(index: VectorIndex) -> None:
    stored = vectors(300)
    index.add(A, ids(300), stored)
    allowed = [f"n{i}" for i in range(0, 300, 7)]
    hits = index.search(A, stored[1], 4, allowed)
    best = sorted(allowed, key=lambda id: -float(stored[int(id[1:])] @ stored[1]))[:4]
    assert [hit.id for hit in hits] == best
    assert [hit.id for hit in index.search(A, stored[1], 4, ["n3", "missing"])] == ["n3"]
    assert index.search(A, stored[1], 4, ["missing"]) == []
    assert index.search(A, stored[1], 4, []) == []
    assert len(index.search(A, stored[1], 1000)) == 300


def test_an_added_id_replaces_the_old_vector(index: VectorIndex) -> None:
    stored = vectors(10)
    index.add(A, ids(10), stored)
    index.add(A, ["n3"], stored[4:5])
    assert index.count(A) == 10
    assert {hit.id for hit in index.search(A, stored[4], 2)} == {"n3", "n4"}


def test_deleted_ids_are_gone_and_unknown_ones_no_error(index: VectorIndex) -> None:
    stored = vectors(10)
    index.add(A, ids(10), stored)
    index.delete(A, ["n9", "n0", "n4", "missing"])
    index.delete(A, ["n4"])
    index.delete(A, [])
    index.delete(B, ["n1"])
    assert index.count(A) == 7
    assert {hit.id for hit in index.search(A, stored[4], 10)} == {f"n{i}" for i in (1, 2, 3, 5, 6, 7, 8)}
    index.add(A, ["n4"], stored[4:5])
    assert index.search(A, stored[4], 1)[0].id == "n4"


def test_spaces_are_apart_and_can_be_dropped(index: VectorIndex) -> None:
    stored = vectors(20)
    for number, space in enumerate(SPACES):
        index.add(space, [f"s{number}"], stored[number : number + 1])
    for number, space in enumerate(SPACES):
        assert [hit.id for hit in index.search(space, stored[0], 10)] == [f"s{number}"]
    index.drop(A)
    index.drop(Space("u", "never"))
    assert [index.count(space) for space in SPACES] == [0, 1, 1, 1, 1]
    assert index.search(A, stored[0], 3) == []
    index.add(A, ["again"], stored[:1])
    assert index.count(A) == 1


def test_an_unknown_space_is_empty(index: VectorIndex) -> None:
    assert index.count(A) == 0
    assert index.search(A, vectors(1)[0], 3) == []
    assert index.search(A, vectors(1)[0], 3, ["x"]) == []


def test_searches_run_while_another_thread_changes_the_index(index: VectorIndex) -> None:
    stored = vectors(300)
    index.add(A, ["n0"], stored[:1])
    failures: list[Exception] = []
    done = threading.Event()

    def change() -> None:
        try:
            for start in range(1, 300, 20):
                index.add(A, [f"n{i}" for i in range(start, min(start + 20, 300))], stored[start : start + 20])
                index.delete(A, [f"n{start}"])
        except Exception as error:
            failures.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=change)
    writer.start()
    while not done.is_set():
        assert index.search(A, stored[0], 3)[0].id == "n0"
        assert index.search(A, stored[0], 3, ["n0"])[0].id == "n0"
    writer.join()
    assert failures == []
    assert index.count(A) == 300 - 15


def test_chroma_keeps_its_vectors_and_drops_another_models(tmp_path: Path) -> None:
    stored = vectors(50)
    first = ChromaStore(tmp_path / "chroma", "m")
    first.add(A, ids(50), stored)
    first.close()
    second = ChromaIndex(tmp_path / "chroma", "m")
    assert second.count(A) == 50
    assert second.search(A, stored[7], 1)[0].id == "n7"
    assert second.search(A, stored[7], 1, ["n8", "missing"])[0].id == "n8"
    second.close()
    other = ChromaStore(tmp_path / "chroma", "other model")
    assert other.count(A) == 0
    other.add(A, ["wide"], vectors(1, dimensions=64))
    other.close()
    third = ChromaStore(tmp_path / "chroma", "m")
    assert third.count(A) == 0
    third.close()


def test_a_worker_that_died_is_replaced_and_nothing_is_lost(tmp_path: Path) -> None:
    stored = vectors(50)
    index = ChromaIndex(tmp_path / "chroma", "m")
    index.add(A, ids(50), stored)
    process = index._worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert index.search(A, stored[7], 1)[0].id == "n7"
    process = index._worker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    dying = threading.Timer(0.3, process.kill)  # in the middle of the next question
    dying.start()
    with pytest.raises(InternalError, match="process of the vector index died"):
        index.search(A, stored[7], 1)
    assert index.search(A, stored[7], 1)[0].id == "n7"
    assert index.count(A) == 50
    index.close()


def test_a_second_owner_of_the_folder_is_refused(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "chroma.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiting = threading.Timer(0.5, os.close, [lock])  # the worker of a killed kernel, about to end
    waiting.start()
    index = ChromaIndex(tmp_path / "chroma", "m")
    waiting.join()
    assert index.count(A) == 0
    with pytest.raises(KernelLocked, match="another process holds"):
        chroma_worker.lock_folder(tmp_path / "chroma", wait_s=0.1)
    index.close()
    os.close(chroma_worker.lock_folder(tmp_path / "chroma", wait_s=0.1))
