"""What the HTTP front and the SDK adapter have in common: a request of either API, and how it is answered."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from aios_kernel.errors import AiosError
from aios_kernel.syscalls import LlmChat, LlmDelta, LlmResult


class Exchange(Protocol):
    """One request to the model, read from the wire, and the spelling of its answer.

    Either `reply` once, or `begin`, `delta` for each piece, then `end` or `fail`: server-sent events as bytes.
    """

    call: LlmChat

    def reply(self, result: LlmResult) -> dict[str, Any]:
        """The whole answer as one JSON object."""
        ...

    def begin(self) -> bytes:
        """The events before the first piece."""
        ...

    def delta(self, delta: LlmDelta) -> bytes:
        """The events of one piece."""
        ...

    def end(self, result: LlmResult) -> bytes:
        """The events after the last piece."""
        ...

    def fail(self, error: AiosError) -> bytes:
        """The events of an error in the middle of the answer."""
        ...


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event with a JSON body."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def fresh_id(prefix: str) -> str:
    """An identifier in OpenAI's manner, such as `chatcmpl-1f0c...`."""
    return prefix + secrets.token_hex(12)
