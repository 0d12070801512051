"""The engine contract: the kernel decides who runs in each step, the engine executes.

An engine knows tokens and KV blocks; it knows no agents, chats or stop strings. It is driven by one thread.
Capabilities are declared, not guessed. Exact continuation is promised for the same engine, dtype and weights
(`fingerprint`) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

from aios_kernel.errors import AiosError
from aios_kernel.syscalls import ExpertStatus, Priority, Replica


class KvExhausted(Exception):
    """The pool has too few free blocks for the call; nothing was changed."""


class Grammar(Protocol):
    """What a context may emit next; one object a context, advanced token by token."""

    def fill_mask(self, mask: Any, row: int) -> None:
        """Write the allowed tokens as bits into `mask[row]` (int32, shape [rows, ceil(vocab / 32)])."""
        ...

    def accept(self, token: int) -> None:
        """Advance by one token. Raises ValueError for one that is not allowed; the state is as it was then."""
        ...

    def accept_later(self, token: int) -> None:
        """The same for a token that is known to be allowed; may be done when the grammar is next asked for anything."""
        ...

    def finished(self) -> bool:
        """Whether nothing but an end token may follow."""
        ...

    def fork(self) -> Grammar:
        """An independent copy in the same state."""
        ...

    def dump(self) -> str:
        """What it was compiled from and the tokens since, as text: `Codec.load_grammar` makes it again anywhere."""
        ...


@runtime_checkable
class GrammarBatch(Protocol):
    """What grammars offer whose masks can be made together, in less time and with less of the interpreter's lock."""

    def fill_masks(self, grammars: Sequence[Any], mask: Any) -> dict[int, str]:
        """Write what each of these grammars, all of this class, allows into its row; give what went wrong, by row."""
        ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Resolved sampling: no defaults are left open. `forced` tokens are emitted instead of the sampled ones.

    Penalties and biases come first, then the grammar, the temperature, and what cuts off unlikely tokens.
    """

    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are cut off; 0: none."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that stand behind the prompt."""
    frequency_penalty: float = 0.0
    """The same, once for every time they stand there."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the prompt or behind it are divided by this, or multiplied if negative (Keskar 2019)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token and what is added to its logit; each token at most once."""
    seed: int = 0
    top_logprobs: int | None = None
    """None: no log-probabilities; else how many alternatives to report beside the emitted token."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; the context then takes nothing from the prefix cache."""
    margin: bool = False
    """Report `StepOutput.margin`; forced tokens do so anyway."""
    forced: tuple[int, ...] = ()

    @property
    def penalised(self) -> bool:
        """Whether the logits depend on the tokens so far, beyond the model."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    @property
    def plain(self) -> bool:
        """Whether the token is the model's own first choice and nothing else is to be told."""
        return not (
            self.temperature
            or self.forced
            or self.top_logprobs is not None
            or self.margin
            or self.logit_bias
            or self.penalised
        )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do; the scheduler and the managers ask before they plan."""

    step_control: bool = False
    fork: bool = False
    snapshot: bool = False
    snapshot_files: bool = False
    """Snapshots can be written to files and read back (`Snapshot.save`, `SnapshotFiles`)."""
    holds: bool = False
    """The order of eviction from the prefix cache can be steered (`PrefixHolds`)."""
    grammar: bool = False
    logprobs: bool = False
    lora: bool = False
    """Contexts can each have a low-rank adapter of the model (`LoraAdapters`)."""
    embed: bool = False
    block_size: int = 1
    """Tokens in a KV block; allocation is in whole blocks."""
    kv_tokens: int = 0
    """Size of the KV pool in tokens."""
    max_batch: int = 256
    """Contexts in one step."""
    max_step_tokens: int = 2048
    """Tokens in one step, over all contexts."""
    prompt_logprobs: bool = False
    vocab: int = 0
    """Tokens that the model knows; 0: not known here."""
    callers: bool = False
    """It wants to know whose contexts it opens (`ForCallers`)."""
    two_phase: bool = False
    """A step can be begun and its result fetched later (`TwoPhase`)."""


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
class TokenScore:
    """Log-probability of a token at its place and of the likeliest tokens there."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])


class StepOutput(msgspec.Struct, frozen=True):
    """What one context did in a step. `token` is None while its prompt is still being prefilled."""

    context: Context
    computed: int
    token: int | None = None
    argmax: int | None = None
    """The greedy choice at this place, after the grammar's mask; differs from `token` when sampled or forced."""
    margin: float | None = None
    """Distance of the two best logits (the tie rule: 1e-3), when it was asked for."""
    logprob: float | None = None
    top: list[tuple[int, float]] = []
    prompt: list[TokenScore] = []
    """Of the prompt's tokens that this step has computed, when `prompt_logprobs` asks for it; not of the first."""
    error: str | None = None
    """Why this context alone failed (such as NaN logits); it emitted nothing and is to be released."""
    failure: AiosError | None = None
    """The same as a typed error, where `error` alone would not tell the caller what to do."""


class Snapshot(Protocol):
    """A context taken off the device: tokens, KV, sampler state, grammar state, exact to the bit."""

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer."""
        ...

    @property
    def computed(self) -> int:
        """How many tokens have KV."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the engine that it was taken from."""
        ...

    @property
    def nbytes(self) -> int:
        """Host memory that it takes."""
        ...

    def save(self, path: Path) -> None:
        """Write it to a file that only this user can read, whole or not at all; from any thread.

        Needs `Capabilities.snapshot_files`. Raises SnapshotError, such as for a full disk; no file is left then.
        """
        ...


class Hold(Protocol):
    """A wish to keep a prefix in the cache."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the prefix."""
        ...


C = TypeVar("C", bound=Context)
S = TypeVar("S", bound=Snapshot)
CIn = TypeVar("CIn", bound=Context, contravariant=True)
SOut = TypeVar("SOut", bound=Snapshot, covariant=True)


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
        """Start a context; cached prefix blocks of the same `salt` (trust domain) and adapter are attached.

        At least one token is always left pending, so that the first step yields logits. Raises KvExhausted, and
        UnknownModel for an adapter that is not loaded.
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

    def fork(
        self,
        context: C,
        *,
        at: int | None = None,
        sampling: SamplingParams | None = None,
        grammar: Grammar | None = None,
    ) -> C:
        """A second context that shares all blocks, copy on write.

        Args:
            context: stays as it is.
            at: start anew behind its first `at` tokens, as if opened on them, their last one pending; what is computed
                of the others is shared and counts as `cached`. None: all tokens, with the same sampling and grammar.
            sampling: of a context that starts anew; None: the same.
            grammar: of a context that starts anew.

        Raises KvExhausted, or ValueError for a place behind the end.
        """
        ...

    def snapshot(self, context: C) -> S:
        """Copy a context to host memory and free its blocks; the context is gone.

        The copy may still be under way when this returns; `kv_free` counts the blocks at once. Raises SnapshotError;
        the context is as it was then.
        """
        ...

    def restore(self, snapshot: S) -> C:
        """Bring a snapshot back; continues exactly. Raises KvExhausted, or SnapshotError for one of another engine."""
        ...

    def release(self, context: C) -> None:
        """Free a context. Full blocks stay in the prefix cache until they are needed."""
        ...

    def embed(self, texts: Sequence[Sequence[int]]) -> Iterator[list[list[float]]]:
        """Vectors of texts (none empty), in their order, all of one length and of unit norm.

        Each `next` computes one forward of at most `max_step_tokens` and gives the vectors that it completed, perhaps
        none: the caller can step its contexts between. Contexts and cached prefixes are not touched; an iterator that
        is left midway holds nothing. Only with `Capabilities.embed`, else Unsupported is raised.
        """
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


L = TypeVar("L")


class TwoPhase(Protocol[CIn, L]):
    """What an engine with `Capabilities.two_phase` offers: time for other work while a step runs.

    `step(plan)` is `collect(launch(plan))`. Between the two, other contexts may be opened, forked, taken off and
    released; those of the plan may not be touched, and no other step may be begun.
    """

    def launch(self, plan: Sequence[tuple[CIn, int]]) -> L:
        """Begin a step; raises what `Engine.step` raises."""
        ...

    def collect(self, launched: L) -> list[StepOutput]:
        """Wait for a step and make its result part of the contexts; outputs are in the plan's order."""
        ...


class SnapshotFiles(Protocol[SOut]):
    """What an engine with `Capabilities.snapshot_files` offers."""

    def load_snapshot(self, path: Path, grammar: Callable[[str], Grammar] | None = None) -> SOut:
        """Read what `Snapshot.save` wrote, in this process or another; from any thread.

        Args:
            path: of the file.
            grammar: makes a grammar from what its `dump` gave; may be left out for contexts without one.

        Raises SnapshotError: the file is gone, damaged, or of another engine.
        """
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose context is opened. `family` is the program at the top of the caller's; `max_tokens` of the answer."""

    program: str
    family: str
    agent: str
    priority: Priority
    max_tokens: int | None = None


class ForCallers(Protocol):
    """What an engine with `Capabilities.callers` offers: it passes on what it is told of a caller."""

    def open_for(
        self,
        caller: Caller,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None,
        lora: str | None,
        salt: bytes,
    ) -> Context:
        """As `Engine.open`."""
        ...

    def forget(self, program: str) -> None:
        """A program has ended."""
        ...

    def homes(self) -> Mapping[str, str]:
        """The replica that holds the KV of each family; empty when there is but one. From any thread."""
        ...

    def replicas(self) -> Sequence[Replica]:
        """All of them; empty when there is but one. From any thread."""
        ...


@runtime_checkable
class ExpertCaching(Protocol):
    """What an engine offers that may hold a mixture's experts in a cache."""

    def expert_status(self) -> ExpertStatus | None:
        """What the cache holds and did so far; None: the model's experts are all in memory, or it has none."""
        ...


class PrefixHolds(Protocol[CIn]):
    """What an engine with `Capabilities.holds` offers: a say in what its prefix cache keeps.

    Eviction takes blocks whose holds have all expired first, then those of the lowest priority, then those unused for
    the longest time; of one prefix always the tail before the head. Blocks that were never held have priority 0.
    """

    def hold(self, context: CIn, *, priority: int = 0, ttl_s: float | None = None, pinned: bool = False) -> Hold:
        """Keep the blocks that a context has computed so far, also beyond its release.

        Args:
            context: whose prefix is kept.
            priority: among the cached blocks; the highest of several holds counts.
            ttl_s: seconds until nobody wants them any longer; None: until `drop`.
            pinned: they are never evicted and count as used in `kv_free`; such a hold ends with `drop` only.
        """
        ...

    def drop(self, hold: Hold) -> None:
        """End a hold; one that has ended is left alone."""
        ...

    def match(self, tokens: Sequence[int], *, salt: bytes = b"", lora: str | None = None) -> int:
        """How many tokens of a prompt `open` would find in the cache now."""
        ...


@runtime_checkable
class LoraAdapters(Protocol):
    """What an engine with `Capabilities.lora` offers: contexts with different adapters, or none, in one step.

    All adapters wait in host memory. One that contexts use (from `open` on, until they are released or swapped out)
    takes room in the KV pool; afterwards it stays there until others need the room. A snapshot continues with the very
    same adapter only.
    """

    def load_lora(self, name: str, source: str) -> None:
        """Read an adapter in PEFT's format; the same once more changes nothing.

        Args:
            name: to open contexts with.
            source: a folder with `adapter_config.json` and `adapter_model.safetensors`, or a Hugging Face id.

        Raises:
            UnknownModel: there is no such folder or id, or it cannot be downloaded.
            ConfigError: files are missing, damaged, or of another model.
            Unsupported: it is no plain LoRA of linear layers.
            InvalidRequest: another adapter has this name.
            OutOfMemory: it is larger than the KV pool.
        """
        ...

    def unload_lora(self, name: str) -> None:
        """Forget an adapter. Raises UnknownModel, or Busy while contexts use it."""
        ...

    def prefetch_lora(self, name: str) -> None:
        """Bring an adapter into the pool for a context that is to be opened, if it has room. Raises UnknownModel."""
        ...

    def loras(self) -> Mapping[str, int]:
        """The adapters by name, each with the tokens of KV that it takes the room of; from any thread."""
        ...
