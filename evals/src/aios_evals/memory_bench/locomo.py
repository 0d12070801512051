"""Recall of turns that hold the evidence of a question, on LoCoMo conversations (evaluation only, CC BY-NC 4.0)."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aios_kernel.errors import NotFound
from aios_kernel.memory import Embedder, ExactIndex, MemoryManager
from aios_kernel.syscalls import MemoryAdd, MemorySearch

_FILE = "locomo/locomo_first5.json.gz"
_TURN = re.compile(r"D\d+:\d+")
_SESSION = re.compile(r"session_\d+")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as (id, session, text), and questions as (text, ids of the turns that answer it)."""

    turns: list[tuple[str, str, str]]
    questions: list[tuple[str, set[str]]]


def load(folder: Path) -> list[Conversation]:
    """The conversations of a data folder; raises NotFound."""
    try:
        with gzip.open(folder / _FILE, "rt") as file:
            return [_conversation(item) for item in json.load(file)]
    except OSError as error:
        raise NotFound(
            f"LoCoMo is not in {folder}: {error}", fix=f"get snap-research/LoCoMo (CC BY-NC 4.0) as {_FILE}"
        ) from error


def recall(conversations: Sequence[Conversation], embedder: Embedder) -> list[dict[str, Any]]:
    """A row a conversation, and one over all questions."""
    rows: list[dict[str, Any]] = []
    asked: list[int] = []
    for number, conversation in enumerate(conversations, 1):
        found = asyncio.run(_ask(conversation, embedder))
        asked.append(len(found))
        rows.append(_row(f"locomo_{number}", len(conversation.turns), found))
    total = {key: sum(row[key] * n for row, n in zip(rows, asked, strict=True)) / sum(asked) for key in _RECALLS}
    return [*rows, {"case": "locomo", "notes": sum(row["notes"] for row in rows), **total}]


_RECALLS = ("recall5", "recall10")


def _row(case: str, notes: int, found: list[tuple[float, float]]) -> dict[str, Any]:
    means = (sum(column) / len(found) for column in zip(*found, strict=True))
    return {"case": case, "notes": notes, **dict(zip(_RECALLS, means, strict=True))}


async def _ask(conversation: Conversation, embedder: Embedder) -> list[tuple[float, float]]:
    """Recall at 5 and at 10 of every question; the turns are added in order, one after the other."""
    with tempfile.TemporaryDirectory(prefix="aios-memory-") as folder:
        memory = MemoryManager(Path(folder), embedder, lambda model: ExactIndex())
        for id, session, text in conversation.turns:
            await memory.add("bench", "agent/bench", "bench", MemoryAdd(text, id=id, metadata={"session": session}))
        found: list[tuple[float, float]] = []
        for question, evidence in conversation.questions:
            notes = (await memory.search("bench", "agent/bench", MemorySearch(question, k=10))).notes
            ids = [note.id for note in notes]
            found.append((_share(ids[:5], evidence), _share(ids, evidence)))
        await memory.close()
    return found


def _share(ids: list[str], evidence: set[str]) -> float:
    return len(evidence.intersection(ids)) / len(evidence)


def _conversation(item: dict[str, Any]) -> Conversation:
    sessions = sorted((key for key in item["conversation"] if _SESSION.fullmatch(key)), key=lambda key: int(key[8:]))
    turns = [(turn["dia_id"], key, _text(turn)) for key in sessions for turn in item["conversation"][key]]
    known = {id for id, _, _ in turns}
    questions = [(qa["question"], set(_TURN.findall(" ".join(qa["evidence"]))) & known) for qa in item["qa"]]
    return Conversation(turns, [(text, evidence) for text, evidence in questions if evidence])


def _text(turn: dict[str, Any]) -> str:
    image = f" [image: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
    return f"{turn['speaker']}: {turn['text']}{image}"
