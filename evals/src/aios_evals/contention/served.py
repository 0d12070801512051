"""What runs the calls of a contention bench: our dispatcher over our engine, or a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aios_kernel.chat.generation import Generation, Order
from aios_kernel.chat.protocol import LoadedModel, TextPiece
from aios_kernel.context.space import SwapSpace
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.errors import AiosError
from aios_kernel.scheduler.dispatcher import Dispatcher, Update
from aios_kernel.scheduler.protocol import Policy, ProgramEnded, ToolBegan, ToolEnded


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens of an answer, and how many of its prompt were not computed for it."""

    tokens: list[int]
    cached: int


class Served(Protocol):
    """Takes calls from many threads."""

    def ask(self, program: str, prompt: list[int], n_tokens: int) -> Answer:
        """Exactly `n_tokens` more, greedily."""
        ...

    def pause(self, program: str) -> None:
        """The program runs a tool from now on."""
        ...

    def resume(self, program: str, seconds: float) -> None:
        """Its tool has returned after so long."""
        ...

    def leave(self, program: str) -> None:
        """The program has ended."""
        ...

    def counts(self) -> dict[str, int]:
        """Figures of its own, for the row."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class _Tokens:
    """A stream that keeps the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def push(self, token: int) -> TextPiece:
        """Keep one."""
        self.tokens.append(token)
        return TextPiece()

    def push_all(self, tokens: Sequence[int]) -> TextPiece:
        """Keep several."""
        self.tokens += tokens
        return TextPiece()

    def finish(self) -> TextPiece:
        """Nothing is held back."""
        return TextPiece()


class Kernel:
    """The kernel's dispatcher, contexts and a policy over our engine; tokens in, tokens out, no end token.

    Args:
        model: its codec is not asked for anything but its end tokens, which must be none.
        policy: decides.
        host_bytes: for contexts that are swapped out.
    """

    def __init__(self, model: LoadedModel, policy: Policy, host_bytes: int) -> None:
        self._model = model
        self._ended: dict[int, threading.Event] = {}
        self._dispatcher = Dispatcher(model, policy, self._deliver, SwapSpace(host_bytes))
        self._dispatcher.start()

    def ask(self, program: str, prompt: list[int], n_tokens: int) -> Answer:
        """See `Served.ask`."""
        order = Order(
            model=self._model.name, program=program, agent="coder", group="bench", priority="normal", salt=b"",
            prompt=prompt, sampling=SamplingParams(), max_tokens=n_tokens,
        )  # fmt: skip
        stream = _Tokens()
        generation = Generation(self._dispatcher.next_id(), order, self._model.codec, stream, time.monotonic())
        ended = self._ended[generation.id] = threading.Event()
        self._dispatcher.submit(generation)
        ended.wait()
        if isinstance(generation.ended, AiosError):
            raise generation.ended
        return Answer(stream.tokens, generation.cached)

    def pause(self, program: str) -> None:
        """See `Served.pause`."""
        self._dispatcher.observe(ToolBegan(program, "tool"))

    def resume(self, program: str, seconds: float) -> None:
        """See `Served.resume`."""
        self._dispatcher.observe(ToolEnded(program, "tool", seconds))

    def leave(self, program: str) -> None:
        """See `Served.leave`."""
        self._dispatcher.observe(ProgramEnded(program))

    def counts(self) -> dict[str, int]:
        """Tokens that were swapped out, calls' and parked contexts."""
        return {"swap_tokens": self._dispatcher.contexts.tiers.tokens_out}

    def close(self) -> None:
        """Stop the thread and free the engine."""
        self._dispatcher.stop()

    def _deliver(self, updates: Sequence[Update]) -> None:
        for update in updates:
            if update.ended:
                self._ended.pop(update.generation.id).set()


class NoCodec:
    """Stands where a tokenizer would: the bench speaks in tokens, and no token ends an answer."""

    window = 1 << 20
    end_tokens: frozenset[int] = frozenset()

    def load_grammar(self, dump: str) -> Any:
        """There are no grammars here."""
        raise NotImplementedError
