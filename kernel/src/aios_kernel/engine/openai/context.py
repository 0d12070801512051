"""An answer at a server: one request, or several of them one after the other, each going on from the last."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aios_kernel.engine.openai.server import ModelServer
from aios_kernel.engine.openai.tokens import Piece, Prompt
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import Usage


@dataclass(frozen=True, slots=True)
class Request:
    """What a server is asked, on behalf of a family of programs: the body for the whole answer, and headers."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    family: str = ""


class RemoteContext:
    """See `aios_kernel.engine.protocol.Context`. The prompt counts as computed when the answer begins.

    But for its first token, which counts at once: a context that has a slot is seen to have it.

    With several servers the text of an answer that nobody follows is held back until its end, so that another server
    can give the answer anew when this one dies. What is handed on meanwhile is empty, and says that it goes on.

    Args:
        prompt: the call.
        request: what is asked for it.
        server: where it is answered.
        slice_tokens: of one request; 0: the whole answer in one.
        several: whether there are other servers that could answer.

    Attributes:
        server: where it is answered now.
        family: whose call it is.
        moves: how often another server took over.
        asking: whether a request is open, or its answer has arrived and was not taken yet.
    """

    def __init__(
        self, prompt: Prompt, request: Request, server: ModelServer, *, slice_tokens: int = 0, several: bool = False
    ) -> None:
        self.tokens: list[int] = list(prompt)
        self.computed = 1
        self.cached = 0
        self.server = server
        self.family = request.family
        self.moves = 0
        self.asking = False
        self._headers, self._body = request.headers, request.body
        body = request.body
        # What is held to a schema, or may be a tool call, cannot be continued from its text.
        self._slice = 0 if body.get("response_format") or body.get("tools") else slice_tokens
        self._lock = threading.Lock()
        self._arrived: deque[Piece | AiosError] = deque()
        self._said: list[str] = []  # the answer's text so far
        self._pieces = 0  # of the request that is open
        self._ticket: object = None  # of that request; what another one still sends is ignored
        self._close: Callable[[], object] = bool
        self._asked: int | None = None  # the most tokens that it may give
        self._usage = Usage()  # of the requests before it
        self._holds_back = several and not self._slice and not prompt.call.stream
        self._held: list[str] = []
        self._handed = 0  # pieces
        self._shown = False  # whether some of the text was handed on

    @property
    def pending(self) -> int:
        """Tokens not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def arrived(self) -> bool:
        """Whether there is something to take."""
        return bool(self._arrived)

    def ask(self, news: threading.Event) -> None:
        """Send the request for the answer, or for what is missing of it; `news` tells when something arrives."""
        ticket = self._ticket = object()

        def arrive(piece: Piece | AiosError) -> None:
            with self._lock:
                if self._ticket is ticket:
                    self._arrived.append(piece)
                    self._note(piece)
            news.set()

        self.asking, self._pieces = True, 0
        if self._left() == 0:  # what was given up had all but the end
            self._arrived.append(Piece.of(end="length"))
            return
        self._close = self.server.ask(self._next_body(), arrive, self._headers)

    @property
    def is_open(self) -> bool:
        """Whether the server still owes something."""
        return self.asking and not any(isinstance(piece, AiosError) or piece.end for piece in [*self._arrived])

    @property
    def can_move(self) -> bool:
        """Whether another server can go on with the answer, or give it anew because nothing of it is known yet."""
        return bool(self._slice) or not self._shown

    def move(self, server: ModelServer) -> None:
        """Have another server answer, from the next `ask` on; only what `can_move`."""
        with self._lock:
            self._ticket = None
            self._arrived = deque(piece for piece in self._arrived if self._slice and isinstance(piece, Piece))
        self._close()
        if self._slice:
            self._count(None)
        else:
            self._said.clear()
            self._held.clear()
        self.server, self.asking = server, False
        self.moves += 1

    def fail(self, error: AiosError) -> None:
        """Wait for the open request no longer: it ends with this."""
        with self._lock:
            self._ticket = None
            self._arrived.append(error)
        self._close()

    def pause(self) -> None:
        """Give the open request up: `ask` goes on from what has arrived. An answer that cannot go on is left to run."""
        with self._lock:
            if not self._slice or not self.is_open:
                return
            self._ticket = None
        self._close()
        self._count(None)
        self.asking = False

    def close(self) -> None:
        """Close the request if it is still open; the server notices that nobody listens any more."""
        self._close()

    def take(self) -> Piece | AiosError | None:
        """All that has arrived as one piece; an error comes after what was before it."""
        taken: Piece | None = None
        while self._arrived:
            if isinstance(self._arrived[0], AiosError):
                if taken is None:
                    return self._arrived.popleft()
                break
            piece = self._arrived.popleft()
            assert isinstance(piece, Piece)
            taken = piece if taken is None else taken.joined(piece)
        if taken is None:
            return None
        return self._handed_on(taken if taken.end is None else self._ended(taken))

    def _handed_on(self, piece: Piece) -> Piece | None:
        """What is to be known of a piece."""
        if not self._holds_back:
            self._shown = self._shown or bool(piece.text)
            return piece
        self._held.append(piece.text)
        if piece.end is not None:
            return Piece.of("".join(self._held), piece.tool_calls, piece.end, piece.usage)
        self._handed += 1
        most = self._body.get("max_tokens")
        if most is not None and self._handed >= most:
            return None  # the last token of the answer comes with its text
        return Piece.of()

    def _ended(self, last: Piece) -> Piece:
        """The end of a request: that of the answer, unless only the slice was used up."""
        used_up = last.usage is None or self._asked is None or last.usage.completion_tokens >= self._asked
        went_on = self._pieces > 1  # a window that is full gives nothing but the end
        self._count(last.usage)
        if self._slice and last.end == "length" and used_up and went_on and self._left() != 0:
            self.asking = False
            return Piece.of(last.text)
        return Piece.of(last.text, last.tool_calls, last.end, self._usage if last.usage is not None else None)

    def _next_body(self) -> dict[str, Any]:
        left = self._left()
        if not self._slice:
            return self._body
        self._asked = self._slice if left is None else min(self._slice, left)
        if not self._said:
            return {**self._body, "max_tokens": self._asked}
        begun = {"role": "assistant", "content": "".join(self._said)}
        return {
            **self._body,
            "messages": [*self._body["messages"], begun],
            "max_tokens": self._asked,
            "continue_final_message": True,
            "add_generation_prompt": False,
        }

    def _left(self) -> int | None:
        """Tokens that the answer may still have; None: as many as there is room for."""
        most = self._body.get("max_tokens")
        return None if most is None else max(0, most - self._usage.completion_tokens)

    def _note(self, piece: Piece | AiosError) -> None:
        if isinstance(piece, Piece):
            self._pieces += 1
            if piece.text:
                self._said.append(piece.text)

    def _count(self, usage: Usage | None) -> None:
        """Add a request's tokens; of one that was given up, or counted by nobody, a piece counts as one."""
        usage = usage or Usage(completion_tokens=self._pieces)
        before = self._usage
        self._usage = Usage(
            prompt_tokens=before.prompt_tokens or usage.prompt_tokens,
            cached_tokens=before.cached_tokens if before.prompt_tokens else usage.cached_tokens,
            completion_tokens=before.completion_tokens + usage.completion_tokens,
        )
