"""The engine half: a context is an answer that a server gives; a step hands on what has arrived of it since."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from aios_kernel.engine.openai.context import RemoteContext, Request
from aios_kernel.engine.openai.hints import hint_fields, hint_headers
from aios_kernel.engine.openai.servers import Servers
from aios_kernel.engine.openai.tokens import WINDOW, Prompt
from aios_kernel.engine.openai.wire import request_body
from aios_kernel.engine.protocol import Caller, Capabilities, Grammar, KvExhausted, SamplingParams, StepOutput
from aios_kernel.errors import AiosError, EngineUnavailable, SnapshotError, UnknownModel, Unsupported
from aios_kernel.process import NAMELESS
from aios_kernel.scheduler.settings import ServerHints
from aios_kernel.syscalls import LlmChat, Replica

_WAIT_S = 0.01
"""How long a step waits for something to arrive: orders to the dispatcher wait as long."""
_SLACK = WINDOW // 2
"""Tokens that are free but in no slot: what a policy keeps back for growth is not to cost a slot."""
_MOVES = 2
"""Servers that one call may take down, or find down, before it ends: a call that kills them is not passed to all."""
_NOBODY = Caller("", "", "", "normal")


@dataclass(slots=True)
class RemoteSnapshot:
    """A context whose request was given up for a while."""

    context: RemoteContext
    fingerprint: str
    nbytes: int = 0

    @property
    def tokens(self) -> list[int]:
        """Of the context."""
        return self.context.tokens

    @property
    def computed(self) -> int:
        """Of the context."""
        return self.context.computed

    def save(self, path: Path) -> None:
        """Not offered: it is a request, and no KV."""
        raise Unsupported("the openai engine writes no snapshots", fix="serve it by the torch engine: aios serve PATH")


class OpenAIEngine:
    """See `aios_kernel.engine.protocol.Engine`; of its promises this one keeps those without a flag.

    Args:
        servers: where the model is.
        model: its name there.
        slots: calls that are open at once.
        hints: what the servers are told beside the calls; None: nothing.
        loras: LoRA adapters that the servers have loaded, and the models' names that they have there.
    """

    name = "openai"

    def __init__(
        self,
        servers: Servers,
        model: str,
        *,
        slots: int,
        hints: ServerHints | None = None,
        loras: Mapping[str, str] | None = None,
    ) -> None:
        self.fingerprint = f"openai:{servers.url}:{model}"
        self._servers = servers
        self._hints = hints or ServerHints()
        self._model = model
        self._loras = dict(loras or {})
        self._live: set[RemoteContext] = set()
        self._news = threading.Event()
        # There is no pool to fill: a slot is a block, which has room for a whole sequence.
        self.capabilities = Capabilities(
            block_size=WINDOW,
            kv_tokens=slots * WINDOW + _SLACK,
            max_batch=slots,
            max_step_tokens=slots * WINDOW,
            snapshot=self._hints.slice_tokens > 0,
            callers=True,
            lora=bool(self._loras),
        )

    def load_lora(self, name: str, source: str) -> None:
        """Nothing to do for an adapter that was named at the start. Raises Unsupported for any other."""
        if name not in self._loras:
            self._lacks("way to load an adapter while it serves")

    def unload_lora(self, name: str) -> None:
        """Not offered."""
        self._lacks("unloading of adapters")

    def prefetch_lora(self, name: str) -> None:
        """Nothing to do: the server brings in what it needs. Raises UnknownModel."""
        self._name_of(name)

    def loras(self) -> Mapping[str, int]:
        """The adapters by name; their memory is the server's matter."""
        return dict.fromkeys(self._loras, 0)

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> RemoteContext:
        """As `open_for`, for a caller that is not known."""
        return self.open_for(_NOBODY, tokens, sampling=sampling, grammar=grammar, lora=lora, salt=salt)

    def open_for(
        self,
        caller: Caller,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None,
        lora: str | None,
        salt: bytes,
    ) -> RemoteContext:
        """Send the call that the tokens stand for; of `sampling` the seed counts, the rest is in the call.

        Raises:
            KvExhausted: all slots are taken.
            UnknownModel: there is no such adapter.
            Unsupported: no adapters were named at the start.
            ValueError: the tokens are not of this engine's codec.
        """
        model = self._name_of(lora)
        if not isinstance(tokens, Prompt):
            raise ValueError("the openai engine opens calls, not tokens")
        if len(self._live) >= self.capabilities.max_batch:
            raise KvExhausted("all slots are taken")
        call, hints, servers = tokens.call, self._hints, self._servers
        caller = replace(caller, family=_family(caller, call))
        body = request_body(call, model, sampling.seed) | hint_fields(hints, caller, call, salt)
        context = RemoteContext(
            tokens,
            Request(body, hint_headers(hints, caller), caller.family),
            servers.of(caller.family, len(tokens)),
            slice_tokens=hints.slice_tokens,
            several=servers.several,
        )
        context.ask(self._news)
        self._take_in(context)
        return context

    def append(self, context: RemoteContext, tokens: Sequence[int]) -> None:
        """Not offered: a next turn is a new call."""
        self._lacks("appended tokens")

    def step(self, plan: Sequence[tuple[RemoteContext, int]]) -> list[StepOutput]:
        """Hand on what has arrived, all of it as one token a context; wait a moment if there is nothing."""
        self._news.clear()
        for context, _ in plan:
            if not context.server.health.up and context.is_open:
                self._rescue(context)
            if not context.asking and not context.arrived:
                context.ask(self._news)
        if not any(context.arrived for context, _ in plan):
            self._news.wait(_WAIT_S)
        return [self._output(context) for context, _ in plan]

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

    def snapshot(self, context: RemoteContext) -> RemoteSnapshot:
        """Take a call off its server; offered if `slice_tokens` is set. What cannot be cut goes on there, unheard."""
        if not self.capabilities.snapshot:
            self._lacks("snapshots")
        context.pause()
        self._let_go(context)
        return RemoteSnapshot(context, self.fingerprint)

    def restore(self, snapshot: RemoteSnapshot) -> RemoteContext:
        """Bring it back: the next step asks for the rest of its answer. Raises KvExhausted, SnapshotError."""
        if not self.capabilities.snapshot or snapshot.fingerprint != self.fingerprint:
            raise SnapshotError(f"a snapshot of {snapshot.fingerprint} cannot continue on {self.fingerprint}")
        if len(self._live) >= self.capabilities.max_batch:
            raise KvExhausted("all slots are taken")
        context = snapshot.context
        if not context.asking:  # its family may have moved meanwhile
            context.server = self._servers.of(context.family, len(context.tokens))
        self._take_in(context)
        return context

    def release(self, context: RemoteContext) -> None:
        """Close the request if it is still open."""
        self._let_go(context)
        context.close()

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """Not offered."""
        self._lacks("embeddings")

    def kv_free(self) -> int:
        """See `Engine.kv_free`."""
        return self.capabilities.kv_tokens - len(self._live) * WINDOW

    def kv_need(self, context: RemoteContext, n_tokens: int) -> int:
        """See `Engine.kv_need`. A context has its slot from the beginning."""
        return 0

    def close(self) -> None:
        """Close every request and the connections."""
        self._live.clear()
        self._servers.close()

    def forget(self, program: str) -> None:
        """Its replica has room for another one."""
        self._servers.forget(program)

    def homes(self) -> Mapping[str, str]:
        """Where programs are; see `ForCallers`."""
        return self._servers.homes() if self._servers.several else {}

    def replicas(self) -> Sequence[Replica]:
        """See `ForCallers`."""
        return self._servers.replicas() if self._servers.several else ()

    def _name_of(self, lora: str | None) -> str:
        """What the model is called at the servers, with an adapter or without."""
        if lora is None:
            return self._model
        if not self._loras:
            self._lacks("LoRA")
        if lora not in self._loras:
            raise UnknownModel(
                f'there is no LoRA adapter "{lora}"; loaded: {", ".join(sorted(self._loras))}',
                fix=f"aios serve --lora {lora}=NAME",
            )
        return self._loras[lora]

    def _output(self, context: RemoteContext) -> StepOutput:
        taken = context.take()
        if isinstance(taken, EngineUnavailable) and self._servers.several:
            if self._move(context):
                return StepOutput(context, 0)
            taken = self._lost(context, taken)
        if taken is None:
            return StepOutput(context, 0)
        if isinstance(taken, AiosError):
            return StepOutput(context, 0, error=taken.message, failure=taken)
        computed, context.computed = context.pending, len(context.tokens)
        context.tokens.append(taken)
        return StepOutput(context, computed, token=taken)

    def _rescue(self, context: RemoteContext) -> None:
        """Its server is down: another one takes over, or it ends. Where there is no other, it may still be answered."""
        if not self._move(context) and not context.can_move and self._servers.is_up(but=context.server):
            context.fail(EngineUnavailable(f"the model server at {context.server.url} is down"))

    def _move(self, context: RemoteContext) -> bool:
        """Have another server take over from one that failed; whether one could."""
        if not context.can_move or context.moves >= _MOVES:
            return False
        server = self._servers.another(context.family, context.server)
        if server is None:
            return False
        if context in self._live:
            self._servers.ended(context.server)
            self._servers.opened(server)
        context.move(server)
        return True

    def _lost(self, context: RemoteContext, error: EngineUnavailable) -> EngineUnavailable:
        """The error of an answer that no other server gives."""
        others = self._servers.is_up(but=context.server)
        if not context.can_move:
            why = "part of the answer has been handed on, and another replica would give another one"
        elif others:
            why = f"{context.moves + 1} replicas failed on it"
        else:
            why = "no other replica is up"
        return EngineUnavailable(
            f"{error.message} ({why})",
            retry_after_s=0.0 if others else 1.0,
            fix="ask again: the program has moved" if others else "start a replica; it is taken back when it answers",
        )

    def _take_in(self, context: RemoteContext) -> None:
        self._live.add(context)
        self._servers.opened(context.server)

    def _let_go(self, context: RemoteContext) -> None:
        if context in self._live:
            self._live.discard(context)
            self._servers.ended(context.server)

    def _lacks(self, what: str) -> NoReturn:
        raise Unsupported(f"the {self.name} engine has no {what}", fix="serve it by the torch engine: aios serve PATH")


def _family(caller: Caller, call: LlmChat) -> str:
    """Whose KV a call goes on from: its program's, or that of its conversation where nobody says whose it is."""
    if caller.agent != NAMELESS:
        return caller.family
    beginning = hashlib.blake2b(digest_size=8)
    for message in call.messages:
        beginning.update(f"{message.role}\0{message.content}\0".encode(errors="surrogatepass"))
        if message.role == "user":
            break
    return f"{caller.family}/{beginning.hexdigest()}"
