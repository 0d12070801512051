"""What runs in the child processes of tests/test_identity.py."""

from __future__ import annotations

import sys

import aios_adapters as aios
from aios_kernel.syscalls import LlmChat, Message


def ask(text: str) -> str:
    """Ask as whoever is on; raises when nobody is."""
    scope = aios.current()
    assert scope is not None, "no agent is on"
    return scope.chat(LlmChat(messages=[Message("user", text)], model="gpt-4o")).text


@aios.agent(name="helper")
def helper(word: str) -> str:
    return ask(f"say {word}")


def both(word: str) -> tuple[str, str, str]:
    """By the run itself, and by an agent of this process."""
    scope = aios.current()
    return ask(f"say {word}"), helper(word), scope.agent if scope else ""


if __name__ == "__main__":
    sys.stdout.write(" ".join(both(sys.argv[1])))
