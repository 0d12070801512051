"""What grammars allow next, worked out beside the forward."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.protocol import GrammarBatch
from aios_kernel.engine.torch.context import TorchContext
from aios_kernel.engine.torch.transfer import moved

_WORTH = 4
"""Masks that are worth another thread: handing them over takes as long as a few of them."""


class Masks:
    """The tokens that grammars allow, as far as they are known before they are asked for.

    Args:
        contexts: whose masks `bits` holds, one a row.
        bits: a bit for each token, int32, [rows, ceil(vocab / 32)].
        errors: why rows could not be made.
        barred: what is to be added to the logits, float32, [rows, vocab or more]; None: worked out when it is needed.

    Attributes:
        applied: whether some logits had to be changed.
    """

    def __init__(
        self,
        contexts: Sequence[TorchContext] = (),
        bits: Tensor | None = None,
        errors: dict[int, str] | None = None,
        barred: NDArray[np.float32] | None = None,
    ) -> None:
        self._rows = {id(context): row for row, context in enumerate(contexts)}
        self._bits = bits
        self._errors = errors or {}
        self._barred = barred
        self.applied = False

    def allow(self, contexts: Sequence[TorchContext], tokens: Sequence[int]) -> Sequence[bool | None]:
        """Whether the contexts' grammars allow these tokens, one each; None where it is not known here."""
        if self._bits is None:
            return [None] * len(contexts)
        places = [self._rows.get(id(context), -1) for context in contexts]
        of = np.array(tokens)
        bits = (self._bits.numpy()[places, of >> 5] >> (of & 31)) & 1
        return [
            None if place < 0 else bit == 1 and place not in self._errors
            for place, bit in zip(places, bits.tolist(), strict=True)
        ]

    def known(self, contexts: Sequence[TorchContext]) -> tuple[Tensor, list[int]] | None:
        """The masks, and which of them each context's greedy choice is to be made by; -1: by none of them.

        None: there is no mask.
        """
        if self._bits is None:
            return None
        rows, errors = self._rows, self._errors
        places = [rows.get(id(context), -1) if context.greedy else -1 for context in contexts]
        return self._bits, [-1 if place in errors else place for place in places] if errors else places

    def apply(self, logits: Tensor, contexts: Sequence[TorchContext]) -> Sequence[str | None]:
        """Set what is not allowed to minus infinity, in place; give why a mask could not be made, or None, a row.

        Args:
            logits: [contexts, vocab].
            contexts: one a row, each with a grammar.
        """
        self.applied = True
        bits, errors = self.bits(contexts, logits.shape[1])
        _bar(logits, bits, self._barred if bits is self._bits else None)
        return errors

    def bits(self, contexts: Sequence[TorchContext], vocab: int) -> tuple[Tensor, Sequence[str | None]]:
        """A bit for each token that is allowed, int32, [contexts, ceil(vocab / 32)], and why rows could not be made."""
        known = [self._rows.get(id(context), -1) for context in contexts]
        if known == [*range(len(self._rows))] and self._bits is not None:
            return self._bits, [self._errors.get(row) for row in known]
        bits = _nothing_barred(len(contexts), vocab)
        missing = [row for row, place in enumerate(known) if place < 0]
        errors = fill(bits, missing, [contexts[row] for row in missing])
        for row, place in enumerate(known):
            if place >= 0 and self._bits is not None:
                bits[row] = self._bits[place]
        return bits, [errors.get(row) if place < 0 else self._errors.get(place) for row, place in enumerate(known)]


class Lookahead:
    """Makes the masks of a step's contexts in a thread of its own while the model computes their logits.

    Without a processor to spare it would only take the model's time, and does nothing.

    Args:
        vocab: width of the logits.
        on_host: whether they are there.
    """

    def __init__(self, vocab: int, *, on_host: bool) -> None:
        self._vocab = vocab
        self._on_host = on_host
        self._last = Masks()
        self._inbox: SimpleQueue[Sequence[TorchContext] | None] = SimpleQueue()
        self._outbox: SimpleQueue[Masks] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._begun = False

    def begin(self, contexts: Sequence[TorchContext]) -> None:
        """Start on those of the contexts, all of which emit a token in this step, that have a grammar.

        Until `take`, nobody else may touch their grammars.
        """
        held = [context for context in contexts if context.grammar is not None]
        self._begun = len(held) >= _WORTH and self._has_processor()
        if not self._begun:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="aios-masks", daemon=True)
            self._thread.start()
        self._inbox.put(held)

    def take(self) -> Masks:
        """What was begun, once it is ready."""
        self._last = self._outbox.get() if self._begun else Masks()
        self._begun = False
        return self._last

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()

    def _has_processor(self) -> bool:
        return not self._on_host or len(os.sched_getaffinity(0)) > torch.get_num_threads()

    def _work(self) -> None:
        while (contexts := self._inbox.get()) is not None:
            bits = _nothing_barred(len(contexts), self._vocab)
            errors = _fill_all(bits, contexts)
            wanted = self._on_host and self._last.applied  # the model is being corrected
            self._outbox.put(Masks(contexts, bits, errors, _barred_in(bits) if wanted else None))


def fill(bits: Tensor, rows: Sequence[int], contexts: Sequence[TorchContext]) -> dict[int, str]:
    """Write what the contexts' grammars allow into rows of `bits`; give what went wrong, by row."""
    errors: dict[int, str] = {}
    for row, context in zip(rows, contexts, strict=True):
        assert context.grammar is not None
        try:
            context.grammar.fill_mask(bits, row)
        except Exception as error:  # noqa: BLE001 - one context's grammar must not end the others' step
            errors[row] = str(error)
    return errors


def _fill_all(bits: Tensor, contexts: Sequence[TorchContext]) -> dict[int, str]:
    """The same for all rows, in one call if their grammars can do that."""
    grammars = [context.grammar for context in contexts]
    first = grammars[0]
    if isinstance(first, GrammarBatch) and all(type(grammar) is type(first) for grammar in grammars):
        return first.fill_masks(grammars, bits)
    return fill(bits, range(len(contexts)), contexts)


def _nothing_barred(rows: int, vocab: int) -> Tensor:
    return torch.full((rows, -(-vocab // 32)), -1, dtype=torch.int32)


def _bar(logits: Tensor, bits: Tensor, barred: NDArray[np.float32] | None = None) -> None:
    if logits.device.type == "cpu":
        barred = _barred_in(bits) if barred is None else barred
        logits.add_(torch.from_numpy(barred)[:, : logits.shape[1]])
        return
    bar_by_bits(logits, moved(bits, logits.device))


def bar_by_bits(logits: Tensor, bits: Tensor) -> None:
    """Set logits whose bit is not set to minus infinity, in place, by plain operations of any device."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).view(len(bits), -1)[:, : logits.shape[1]]
    logits.masked_fill_(allowed == 0, float("-inf"))


def _barred_in(bits: Tensor) -> NDArray[np.float32]:
    """What is added to logits: a look-up for eight tokens at once; xgrammar's own loop takes up to forty times that."""
    return np.take(_barred(), bits.numpy().view(np.uint8), axis=0).reshape(len(bits), -1)


@functools.cache
def _barred() -> NDArray[np.float32]:
    """What a byte of the mask adds to the logits of its eight tokens, float32, [256, 8]."""
    allowed = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(allowed == 1, np.float32(0.0), np.float32("-inf"))
