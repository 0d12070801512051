"""A sequence on the torch engine: its tokens, its block table and the state of its sampler."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from aios_kernel.engine.protocol import Grammar, SamplingParams
from aios_kernel.engine.torch.lora.adapter import Adapter
from aios_kernel.engine.torch.prefix import BLOCK, extend_keys


class TorchContext:
    """See `aios_kernel.engine.protocol.Context`.

    Attributes:
        tokens: prompt and answer.
        computed: how many of them have KV.
        cached: how many prompt tokens came from the prefix cache instead of a forward. It can still grow while the
            prompt is prefilled, when another context computes the same prefix first.
        emitted: tokens emitted so far; the index into `sampling.forced` and the counter of the random numbers.
        greedy: its sampling asks for the model's first choice and nothing else (`SamplingParams.plain`).
        root: content key that the chain of block keys starts from.
        keys: content keys of the full blocks of `tokens`.
        published: full blocks that were offered to the prefix cache.
        poisoned: its KV is not to be trusted (its logits were not finite).
        n_blocks: in its block table.
        head: first block of the table; -1: it is empty.
        tail: last block of the table; -1: it is empty.
        arrival: done once its restored KV is in the pool; None for a context whose KV is there.
        lora: the adapter that its KV and its tokens are of; None: the model alone.
    """

    __slots__ = (
        "_table",
        "arrival",
        "cached",
        "closed",
        "computed",
        "emitted",
        "grammar",
        "greedy",
        "head",
        "keys",
        "lora",
        "n_blocks",
        "poisoned",
        "prompt",
        "published",
        "root",
        "sampling",
        "tail",
        "tokens",
    )

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        sampling: SamplingParams,
        grammar: Grammar | None = None,
        root: bytes,
        lora: Adapter | None = None,
    ) -> None:
        self.tokens = list(tokens)
        self.prompt = len(self.tokens)
        self.computed = 0
        self.cached = 0
        self.sample_by(sampling, grammar)
        self.emitted = 0
        self.root = root
        self.lora = lora
        self.keys: list[bytes] = []
        self.published = 0
        self.poisoned = False
        self.closed = False
        self.arrival: Future[None] | None = None
        self.n_blocks = 0
        self.head = self.tail = -1
        self._table: NDArray[np.int64] = np.zeros(max(8, len(self.tokens) // BLOCK + 4), dtype=np.int64)

    def sample_by(self, sampling: SamplingParams, grammar: Grammar | None) -> None:
        """How its next tokens are chosen."""
        self.sampling = sampling
        self.grammar = grammar
        self.greedy = sampling.plain

    @property
    def plain(self) -> bool:
        """Whether its token is the model's own first choice, and nothing else is to be told."""
        return self.greedy and self.grammar is None

    @property
    def pending(self) -> int:
        """Tokens not computed yet."""
        return len(self.tokens) - self.computed

    @property
    def wants_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are still due, so that each of them must be computed."""
        return self.sampling.prompt_logprobs is not None and self.computed < self.prompt

    @property
    def sampled_by_grammar(self) -> bool:
        """Whether all that its grammar allows must be known, whatever the model's first choice is."""
        sampling = self.sampling
        return self.grammar is not None and bool(sampling.temperature or sampling.forced or sampling.margin)

    @property
    def table(self) -> NDArray[np.int64]:
        """Block numbers in the order of the tokens, a view of shape [n_blocks]."""
        return self._table[: self.n_blocks]

    @property
    def blocks(self) -> list[int]:
        """Block numbers in the order of the tokens, as a list."""
        return self.table.tolist()

    def push_block(self, block: int) -> None:
        """Put a block behind the table."""
        if self.n_blocks == len(self._table):
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
        self._table[self.n_blocks] = self.tail = block
        if not self.n_blocks:
            self.head = block
        self.n_blocks += 1

    def exchange_tail(self, block: int) -> None:
        """Put another block in the place of the last one."""
        self._table[self.n_blocks - 1] = self.tail = block
        if self.n_blocks == 1:
            self.head = block

    def cut_blocks(self, n_blocks: int) -> list[int]:
        """Shorten the table to `n_blocks`; give the removed blocks, the last first."""
        cut = self._table[n_blocks : self.n_blocks].tolist()
        if cut:
            self.n_blocks = n_blocks
            self.tail = int(self._table[n_blocks - 1]) if n_blocks else -1
            self.head = self.head if n_blocks else -1
        return cut[::-1]

    def extend_keys(self) -> None:
        """Compute the content keys of blocks that the tokens have filled since."""
        extend_keys(self.keys, self.root, self.tokens)

    def key_before(self, index: int) -> bytes:
        """Content key of the tokens in front of the token at `index`, the first of a block."""
        self.extend_keys()
        return self.keys[index // BLOCK - 1] if index else self.root

    def skip(self, n_tokens: int) -> None:
        """Count tokens as computed whose KV was found."""
        start, self.computed = self.computed, self.computed + n_tokens
        self.cached += max(0, min(self.computed, self.prompt) - start)

    def beginning(self, n_tokens: int) -> TorchContext:
        """A context of the first `n_tokens` tokens alone, all but the last computed as far as they are here."""
        part = TorchContext(self.tokens[:n_tokens], sampling=self.sampling, root=self.root, lora=self.lora)
        part.computed = part.cached = min(self.computed, n_tokens - 1)
        for block in self._table[: -(-part.computed // BLOCK)].tolist():
            part.push_block(block)
        part.keys = self.keys[: n_tokens // BLOCK]
        part.published = min(self.published, part.computed // BLOCK)
        part.poisoned = self.poisoned
        return part

    def twin(self) -> TorchContext:
        """A context in the same state; the caller takes the references on the shared blocks."""
        twin = TorchContext(self.tokens, sampling=self.sampling, root=self.root, lora=self.lora)
        twin.grammar = self.grammar.fork() if self.grammar else None
        for name in ("prompt", "computed", "cached", "emitted", "published", "poisoned", "n_blocks", "head", "tail"):
            setattr(twin, name, getattr(self, name))
        twin.keys = list(self.keys)
        twin._table = self._table.copy()
        return twin
