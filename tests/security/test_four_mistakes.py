"""What broke other serving systems again and again, each as a test that stays.

Pickle on a socket, no authentication on localhost (`test_doors.py`), SQL built from strings, and an engine loop that
one client's odd parameter or hang-up can end.
"""

from __future__ import annotations

import ast
import functools
import os
import pickle
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aios_evals.siege.world import quick
from aios_kernel import errors
from aios_kernel.client import Client
from aios_kernel.config import Config, socket_of
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    FileData,
    LlmChat,
    LlmEmbed,
    LlmResult,
    MemoryAdd,
    MemoryGet,
    MemorySearch,
    Message,
    Note,
    Sampling,
    StorageGet,
    StoragePut,
    Syscall,
    ToolBegin,
    ToolCall,
    ToolSpec,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [*(ROOT / name for name in ("kernel/src", "aios_adapters", "evals/src")), *(ROOT / "adapters").glob("*/src")]
SOURCES = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))


@functools.cache
def parsed() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in SOURCES]


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path, tree in parsed():
        for node in ast.walk(tree):
            yield path, node


# --- pickle -----------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickled, it would leave a mark."""

    def __reduce__(self) -> Any:
        return (os.putenv, ("AIOS_UNPICKLED", "1"))


BODIES = [pickle.dumps(Payload(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
_watched: list[str] = []
_watching = threading.Event()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching.is_set() and event in {"pickle.find_class", "marshal.loads", "os.putenv"}:
        _watched.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Generator[InProcessKernel, None, None]:
    running = InProcessKernel(quick(tmp_path_factory.mktemp("aios")))
    yield running
    running.stop()


@pytest.fixture
def client(kernel: InProcessKernel) -> Generator[Client, None, None]:
    connection = kernel.connect("test")
    yield Client(connection)
    connection.close()


def test_nothing_is_unpickled_at_any_door_or_store(kernel: InProcessKernel, client: Client) -> None:
    sys.addaudithook(_hook)  # cannot be taken away again; it watches only here
    client.call(MemoryAdd(text="warm"))  # libraries are imported, which reads marshalled code
    client.call(MemorySearch(query="warm"))
    _watching.set()
    try:
        for number, body in enumerate(BODIES):
            text = body.decode("latin-1")
            client.call(StoragePut(path=f"b{number}", data=body))
            kept = client.call(StorageGet(path=f"b{number}"))
            assert isinstance(kept, FileData)
            assert kept.data == body
            client.call(MemoryAdd(text=text, id=f"n{number}", metadata={"x": text}))
            note = client.call(MemoryGet(id=f"n{number}"))
            assert isinstance(note, Note)
            assert note.text == text
            client.call(LlmEmbed(texts=[text]))
            client.call(LlmChat(messages=[Message(role="user", content=text)]))
            with pytest.raises(errors.InvalidRequest):
                client.call(ToolBegin(name="t", arguments=text))
            for wrapped in (body, len(body).to_bytes(4, "big") + body):
                _post(kernel.config, wrapped)
    finally:
        _watching.clear()
    assert _watched == []
    pickle.loads(pickle.dumps(Path))
    _watching.set()
    pickle.loads(pickle.dumps(Path))
    _watching.clear()
    assert any("find_class" in each for each in _watched)  # the hook is not blind


def _post(config: Config, data: bytes) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(str(socket_of(config)))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass


BANNED_IMPORTS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}


def test_no_source_reads_pickles_or_runs_text() -> None:
    assert len(SOURCES) > 300
    found: list[str] = []
    for path, node in trees():
        place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        names = {alias.name.partition(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
        if isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        found += [f"{place} imports {name}" for name in names & BANNED_IMPORTS]
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if isinstance(node.func, ast.Name) and called in {"eval", "exec", "compile", "__import__"}:
                found.append(f"{place} calls {called}")
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if _is_true(options.get("trust_remote_code")) or _is_true(options.get("shell")):
                found.append(f"{place} trusts code or a shell")
            if called == "load" and _owner(node) == "torch" and not _is_true(options.get("weights_only")):
                found.append(f"{place} torch.load without weights_only")
            if called in {"system", "popen"} and _owner(node) == "os":
                found.append(f"{place} runs a shell")
    assert found == []


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _owner(call: ast.Call) -> str:
    return call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""


# --- SQL --------------------------------------------------------------------------------------------------------------


EXECUTES = {"execute", "executemany"}
BUILT = {
    ("_sqlite.py", "schema"),  # a manager's own, a constant of its module
    ("memory/schema.py", "'ALTER TABLE notes ADD COLUMN ' + column"),  # of a tuple of constants above it
}
"""Statements that are neither written where they are executed nor constants of their module."""


def test_no_statement_is_built_from_what_somebody_sent() -> None:
    built: set[tuple[str, str]] = set()
    seen = 0
    for path, node in trees():
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") in EXECUTES and node.args):
            continue
        seen += 1
        statement = node.args[0]
        constant = isinstance(statement, ast.Name) and statement.id.isupper()
        if not isinstance(statement, ast.Constant) and not constant:
            kernel = ROOT / "kernel/src/aios_kernel"
            built.add((str(path.relative_to(kernel if kernel in path.parents else ROOT)), ast.unparse(statement)))
    assert seen > 50
    assert built == BUILT, "look at what goes in, then add it here"


# --- the engine loop --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[InProcessKernel, None, None]:
    """The torch engine with the demo model."""
    home = str(tmp_path_factory.mktemp("aios"))
    running = InProcessKernel(Config(
        kernel="inprocess", home=home, model="demo", embedder="hash", vectors="exact", threads=1, kv_tokens=4096,
    ))  # fmt: skip
    yield running
    running.stop()


def asked(text: str = "What is the price of kiwi_7?", **sampling: Any) -> LlmChat:
    return LlmChat(messages=[Message("user", text)], sampling=Sampling(**{"max_tokens": 8, **sampling}))


_NAN, _INF = float("nan"), float("inf")
ODD: list[Syscall] = [
    *(asked(temperature=value) for value in (_NAN, _INF, -_INF, -1.0, 1e-300, 1e300)),
    *(asked(top_p=value) for value in (_NAN, 0.0, -1.0, 2.0, 1e-300)),
    *(asked(top_k=value) for value in (0, -1, 10**9, 2**62)),
    *(asked(min_p=value) for value in (_NAN, -1.0, 2.0, 1.0)),
    *(asked(**{name: value}) for name in ("presence_penalty", "frequency_penalty", "repetition_penalty")
      for value in (_NAN, _INF, -1e308, 1e308, 0.0)),
    *(asked(max_tokens=value) for value in (0, -1, 2**62)),
    *(asked(seed=value) for value in (-1, 2**63 - 1, -(2**63))),
    *(asked(n=value) for value in (0, -1, 10**9)),
    *(asked(logit_bias=value) for value in ({-1: 1.0}, {10**9: 1.0}, {0: _NAN}, {0: _INF}, {0: -_INF}, {1: 1e308})),
    asked(logit_bias=dict.fromkeys(range(5000), -100.0)),
    *(asked(logprobs=True, top_logprobs=value) for value in (-1, 10**6)),
    *(asked(prompt_logprobs=value) for value in (-1, 0, 10**6)),
    *(asked(stop=value) for value in ([""], ["\x00"], ["x" * 10**5], ["\ud7ff"], ["a"] * 1000)),
    *(asked(forced=value) for value in ("", "\x00", "x" * 10_000)),
    *(asked(text) for text in ("", "\x00", "\u202e" * 50, "<|im_end|>" * 50, "\ud7ff\ue000\uffff", "{{ x }}{% y %}")),
    LlmChat(messages=[]),
    LlmChat(messages=[Message("tool", "x", tool_call_id="none")]),
    LlmChat(messages=[Message("assistant", "x", tool_calls=[ToolCall("", "", "{{{")])]),
    LlmChat(messages=[Message("system", "x")] * 500),
    *(LlmChat(messages=[Message("user", "x")], schema=schema, sampling=Sampling(max_tokens=8)) for schema in (
        {}, {"type": "nothing"}, {"$ref": "#"}, {"$ref": "http://x.example/y"}, {"type": "string", "pattern": "(a+)+$"},
        {"allOf": [{}] * 200}, {"enum": []}, {"type": "array", "minItems": 10**9}, {"properties": 5},
    )),
    *(LlmChat(messages=[Message("user", "x")], regex=text, sampling=Sampling(max_tokens=8)) for text in (
        "(", "(a+)+", "a{1000000}", "[", "\\", "(?=a)b", "",
    )),
    *(LlmChat(messages=[Message("user", "x")], choice=value) for value in ([""], ["a"] * 1000, ["\x00"])),
    LlmChat(messages=[Message("user", "x")], tools=[ToolSpec("", "", {"type": 5})], sampling=Sampling(max_tokens=8)),
    LlmChat(messages=[Message("user", "x")], tools=[ToolSpec("a b\n", "", {})] * 50, sampling=Sampling(max_tokens=8)),
    LlmChat(messages=[Message("user", "x")], tool_choice="nothing", sampling=Sampling(max_tokens=8)),
    LlmChat(messages=[Message("user", "x")], lora="none"),
    LlmEmbed(texts=["", "\x00", "x" * 10_000], model="demo"),
]  # fmt: skip


FAULTS = {each.code for each in (errors.InternalError, errors.EngineError, errors.DeadlineExceeded, errors.Cancelled)}
"""What would be the kernel's fault, or a hang."""


def _failure(client: Client, call: Syscall) -> str | None:
    """The code of the error that a call ends with."""
    try:
        client.call(call, timeout_s=60)
    except errors.AiosError as error:
        return error.code
    return None


def test_no_parameter_ends_the_engine(served: InProcessKernel) -> None:
    """Each is answered or refused, alone and beside an honest call; the honest one's answer stays what it was."""
    connection = served.connect("honest")
    odd = served.connect("odd")
    honest, attacker = Client(connection), Client(odd)
    expected = honest.call(asked(temperature=0.0))
    assert isinstance(expected, LlmResult)
    refused = 0
    for call in ODD:
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(honest.call, asked(temperature=0.0), timeout_s=60)
            failure = _failure(attacker, call)
            again = beside.result(60)
        assert failure is None or failure not in FAULTS, call
        refused += failure is not None
        assert isinstance(again, LlmResult)
        assert again.text == expected.text, call
    assert 20 < refused < len(ODD)
    for each in (connection, odd):
        each.close()


def test_no_hang_up_ends_the_engine(served: InProcessKernel) -> None:
    """Clients that go in the middle of prompts, streams, several answers and grammars, forty times."""
    honest = Client(served.connect("honest"))
    expected = honest.call(asked(temperature=0.0))
    assert isinstance(expected, LlmResult)

    class Gone:
        def put(self, frame: Any) -> None:
            pass

    kinds = [
        asked(max_tokens=200), asked(max_tokens=200, n=4, temperature=1.0), asked("x " * 1500, max_tokens=50),
        msgspec.structs.replace(asked(max_tokens=200), stream=True),
        msgspec.structs.replace(asked(max_tokens=200), schema={"type": "object"}),
    ]  # fmt: skip
    for number in range(40):
        leaving = served.connect("leaving")
        for call in kinds:
            leaving.submit(call, Gone(), program=None, timeout_s=None)
        if number % 2:
            honest.call(asked(max_tokens=1))
        leaving.close()
    again = honest.call(asked(temperature=0.0), timeout_s=60)
    assert isinstance(again, LlmResult)
    assert again.text == expected.text
    honest.connection.close()
