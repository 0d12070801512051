"""The engine half: a context is an open request; a step hands on what its answer has brought since."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from aios_kernel.engine.openai.server import ModelServer
from aios_kernel.engine.openai.tokens import WINDOW, Piece, Prompt
from aios_kernel.engine.openai.wire import request_body
from aios_kernel.engine.protocol import Capabilities, Grammar, KvExhausted, SamplingParams, Snapshot, StepOutput
from aios_kernel.errors import AiosError, Unsupported

_WAIT_S = 0.01
"""How long a step waits for something to arrive: orders to the dispatcher wait as long."""


class RemoteContext:
    """See `aios_kernel.engine.protocol.Context`. The prompt counts as computed when the answer begins."""

    __slots__ = ("arrived", "cached", "close", "computed", "tokens")

    def __init__(self, prompt: Prompt) -> None:
        self.tokens: list[int] = list(prompt)
        self.computed = 0
        self.cached = 0
        self.arrived: deque[Piece | AiosError] = deque()
        self.close: Callable[[], object] = bool

    @property
    def pending(self) -> int:
        """Tokens not computed yet."""
        return len(self.tokens) - self.computed

    def take(self) -> Piece | AiosError | None:
        """All that has arrived as one piece; an error comes after what was before it."""
        taken: Piece | None = None
        while self.arrived:
            if isinstance(self.arrived[0], AiosError):
                return taken or self.arrived.popleft()
            piece = self.arrived.popleft()
            assert isinstance(piece, Piece)
            taken = piece if taken is None else taken.joined(piece)
        return taken


class OpenAIEngine:
    """See `aios_kernel.engine.protocol.Engine`; of its promises this one keeps those without a flag.

    Args:
        server: where the model is.
        model: its name there.
        slots: calls that are open at once.
    """

    name = "openai"

    def __init__(self, server: ModelServer, model: str, *, slots: int) -> None:
        self.fingerprint = f"openai:{server.url}:{model}"
        self._server = server
        self._model = model
        self._live: set[RemoteContext] = set()
        self._news = threading.Event()
        # There is no pool to fill: every slot has room for a whole sequence.
        self.capabilities = Capabilities(kv_tokens=slots * WINDOW, max_batch=slots, max_step_tokens=slots * WINDOW)

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> RemoteContext:
        """Send the call that the tokens stand for; of `sampling` the seed counts, the rest is in the call.

        Raises:
            KvExhausted: all slots are taken.
            ValueError: the tokens are not of this engine's codec.
        """
        if not isinstance(tokens, Prompt):
            raise ValueError("the openai engine opens calls, not tokens")
        if lora is not None:
            self._lacks("LoRA")
        if len(self._live) >= self.capabilities.max_batch:
            raise KvExhausted("all slots are taken")
        context = RemoteContext(tokens)

        def arrive(piece: Piece | AiosError) -> None:
            context.arrived.append(piece)
            self._news.set()

        context.close = self._server.ask(request_body(tokens.call, self._model, sampling.seed), arrive)
        self._live.add(context)
        return context

    def append(self, context: RemoteContext, tokens: Sequence[int]) -> None:
        """Not offered: a next turn is a new call."""
        self._lacks("appended tokens")

    def step(self, plan: Sequence[tuple[RemoteContext, int]]) -> list[StepOutput]:
        """Hand on what has arrived, all of it as one token a context; wait a moment if there is nothing."""
        self._news.clear()
        if not any(context.arrived for context, _ in plan):
            self._news.wait(_WAIT_S)
        return [_output(context) for context, _ in plan]

    def fork(
        self,
        context: RemoteContext,
        *,
        at: int | None = None,
        sampling: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> RemoteContext:
        """Not offered."""
        self._lacks("forks")

    def snapshot(self, context: RemoteContext) -> Snapshot:
        """Not offered."""
        self._lacks("snapshots")

    def restore(self, snapshot: Snapshot) -> RemoteContext:
        """Not offered."""
        self._lacks("snapshots")

    def release(self, context: RemoteContext) -> None:
        """Close the request if it is still open; the server notices that nobody listens any more."""
        self._live.discard(context)
        context.close()

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """Not offered."""
        self._lacks("embeddings")

    def kv_free(self) -> int:
        """See `Engine.kv_free`."""
        return self.capabilities.kv_tokens - sum(context.computed for context in self._live)

    def kv_need(self, context: RemoteContext, n_tokens: int) -> int:
        """See `Engine.kv_need`."""
        return n_tokens

    def close(self) -> None:
        """Close every request and the connections."""
        self._live.clear()
        self._server.close()

    def _lacks(self, what: str) -> NoReturn:
        raise Unsupported(f"the openai engine has no {what}", fix="serve it by the torch engine: aios serve PATH")


def _output(context: RemoteContext) -> StepOutput:
    taken = context.take()
    if taken is None:
        return StepOutput(context, 0)
    if isinstance(taken, AiosError):
        return StepOutput(context, 0, error=taken.message, failure=taken)
    computed, context.computed = context.pending, len(context.tokens)
    context.tokens.append(taken)
    return StepOutput(context, computed, token=taken)
