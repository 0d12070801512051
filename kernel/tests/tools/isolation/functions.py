"""Functions that tests call in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from typing import Any


def add(a: int, b: int = 1) -> dict[str, int]:
    print("this is no result")
    print("nor is this", file=sys.stderr)
    os.write(1, b"and this is neither\n")
    return {"sum": a + b}


async def later(text: str) -> str:
    await asyncio.sleep(0.01)
    return text.upper()


@dataclass
class Point:
    x: int


def point() -> Point:
    return Point(3)


def no_json() -> object:
    return object()


def fails(text: str) -> None:
    raise ValueError(text)


def leaves() -> None:
    sys.exit(5)


def crashes() -> None:
    os.kill(os.getpid(), 11)


def hangs() -> None:
    time.sleep(77)


def large() -> str:
    return "x" * 5_000_000


def where() -> dict[str, Any]:
    return {"pid": os.getpid(), "cwd": os.getcwd(), "environment": dict(os.environ), "threads": "torch" in sys.modules}


def wait_for(path: str) -> dict[str, str]:
    print("begun", flush=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    return {"found": path}


def keyed(idempotency_key: str) -> str:
    return idempotency_key


def attack(probe: str, arguments: dict[str, Any]) -> str:
    """One of the attacks, in this very process."""
    import probes

    try:
        return "GOT" if getattr(probes, probe)(**arguments) else "BLOCKED: nothing came of it"
    except (OSError, MemoryError, RuntimeError) as error:
        return f"BLOCKED: {type(error).__name__}: {error}"


def was_done(key: str) -> tuple[str, object]:
    return ("done", {"key": key}) if key.startswith("known") else ("not_done", None)
