"""The engine contract: the kernel decides who runs in each step, the engine executes.

An engine knows tokens and KV blocks; it knows no agents, chats or stop strings. It is driven by one thread.
Capabilities are declared, not guessed. Exact continuation is promised for the same engine, dtype and weights
(`fingerprint`) only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable


class KvExhausted(Exception):
    """The pool has too few free blocks for the call; nothing was changed."""


class Grammar(Protocol):
    """What a context may emit next; one object a context, advanced token by token."""

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the allowed tokens as bits into `mask[row]` (int32, shape [rows, ceil(vocab / 32)])."""
        ...

    def accept(self, token: int) -> None:
        """Advance by one emitted token."""
        ...

    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        ...

    def fork(self) -> Grammar:
        """An independent copy in the same state."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Resolved sampling: no defaults are left open. `forced` tokens are emitted instead of the sampled ones."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    top_logprobs: int | None = None
    """None: no log-probabilities; else how many alternatives to report beside the emitted token."""
    forced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; the scheduler and the managers ask before they plan."""

    step_control: bool = False
    fork: bool = False
    snapshot: bool = False
    grammar: bool = False
    logprobs: bool = False
    lora: bool = False
    embed: bool = False
    block_size: int = 1
    """Tokens in a KV block; allocation is in whole blocks."""
    kv_tokens: int = 0
    """Size of the KV pool in tokens."""
    max_batch: int = 256
    """Contexts in one step."""
    max_step_tokens: int = 2048
    """Tokens in one step, over all contexts."""


class Context(Protocol):
    """A sequence with its KV. `tokens` holds prompt and answer; `computed` of them have KV; the rest is pending.

    A context emits a token in the step that computes its last pending token; that token is appended and is pending
    itself (so a decoding context always has `pending == 1`).
    """

    tokens: list[int]
    computed: int
    cached: int
    """Prompt tokens that came from the prefix cache: at `open`, or later while the prompt is being prefilled."""

    @property
    def pending(self) -> int:
        """Tokens not computed yet."""
        ...


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one context did in a step. `token` is None while its prompt is still being prefilled."""

    context: Context
    computed: int
    token: int | None = None
    argmax: int | None = None
    """The greedy choice at this place, after the grammar's mask; differs from `token` when sampled or forced."""
    margin: float = 0.0
    """Distance of the two best logits (the tie rule: 1e-3)."""
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    error: str | None = None
    """Why this context alone failed (such as NaN logits); it emitted nothing and is to be released."""


class Snapshot(Protocol):
    """A context taken off the device: tokens, KV, sampler state, grammar state, exact to the bit."""

    tokens: list[int]
    computed: int
    fingerprint: str
    nbytes: int


C = TypeVar("C", bound=Context)
S = TypeVar("S", bound=Snapshot)


@runtime_checkable
class Engine(Protocol[C, S]):
    """See the module's docstring. All methods are called from the engine loop's thread."""

    name: str
    fingerprint: str
    capabilities: Capabilities

    def open(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        lora: str | None = None,
        salt: bytes = b"",
    ) -> C:
        """Start a context; cached prefix blocks of the same `salt` (trust domain) are attached.

        At least one token is always left pending, so that the first step yields logits. Raises KvExhausted.
        """
        ...

    def append(self, context: C, tokens: Sequence[int]) -> None:
        """Add tokens (a tool's result, the next turn) behind the sequence; nothing is computed yet."""
        ...

    def step(self, plan: Sequence[tuple[C, int]]) -> list[StepOutput]:
        """Compute up to n pending tokens of each context in one forward; outputs are in the plan's order.

        Tokens that turn out to be cached are attached instead: they advance the context, count towards n, but not in
        `StepOutput.computed`. Raises KvExhausted before anything was computed when the blocks do not suffice.
        """
        ...

    def fork(self, context: C) -> C:
        """A second context that shares all blocks, copy on write."""
        ...

    def snapshot(self, context: C) -> S:
        """Copy a context to host memory and free its blocks; the context is gone."""
        ...

    def restore(self, snapshot: S) -> C:
        """Bring a snapshot back; continues exactly. Raises KvExhausted, or ValueError for another fingerprint."""
        ...

    def release(self, context: C) -> None:
        """Free a context. Full blocks stay in the prefix cache until they are needed."""
        ...

    def kv_free(self) -> int:
        """Tokens that can still be allocated, evictable cached blocks included."""
        ...

    def kv_need(self, context: C, n_tokens: int) -> int:
        """Tokens of new blocks that computing `n_tokens` more would allocate (a multiple of the block size)."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
