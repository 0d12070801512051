"""A model's forward as compiled graphs that are called without asking the compiler each time.

`torch.compile` checks before every call that nothing it relied on has changed, and collects the weights: half a
millisecond, a tenth of a step. An engine's model does not change. So the graphs' calls are noted while they are made,
and repeated with other tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

Function = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""ids [tokens], positions [tokens], rows [n], a number: logits [n, vocab]."""
Inputs = tuple[Tensor, Tensor, Tensor, int]


def keep_rotations(model: nn.Module) -> None:
    """Have a compiled model work out its rotary embedding once a step.

    The compiler takes sines and cosines for cheap, and works them out anew for every head of every layer: a twentieth
    of a step. What an opaque operation returns it has to keep.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.register_forward_hook(_kept)


def _kept(_module: nn.Module, _inputs: Any, result: Any) -> Any:
    if not torch.compiler.is_compiling() or not isinstance(result, tuple):
        return result
    return tuple(torch.ops.aios.keep(part) if isinstance(part, Tensor) else part for part in result)


_operations = torch.library.Library("aios", "FRAGMENT")
_operations.define("keep(Tensor value) -> Tensor")
_operations.impl("keep", torch.clone, "CPU")
_operations.impl("keep", torch.clone, "CUDA")
torch.library.register_fake("aios::keep", torch.empty_like, lib=_operations)


class CompiledForward:
    """Graphs of a forward: one for a single token, one for several tokens and at least two rows.

    Args:
        forward: to compile; takes what `Function` says.
        single: example inputs with one token.
        several: example inputs with several tokens. The numbers of tokens and of rows, and the last input, must differ
            from each other, or they could not be told apart.

    Raises:
        Exception: whatever the compiler raises for a forward that it cannot take.
        ValueError: a graph wants something that is no input, or does not want all of them.
    """

    def __init__(self, forward: Function, single: Inputs, several: Inputs) -> None:
        self._compile: Callable[[Any, Any], Callable[..., Any]] = lookup_backend("inductor")
        self._called: tuple[Callable[..., Any], Sequence[Any]] | None = None
        traced = torch.compile(forward, dynamic=True, fullgraph=True, backend=self._noting)
        # Several tokens first: what differs then is what the compiler leaves open.
        self._several = self._graph(traced, several)
        self._single = self._graph(traced, single)

    def __call__(self, ids: Tensor, positions: Tensor, rows: Tensor, number: int) -> Tensor:
        """Logits, [rows, vocab]; inputs as of `Function`, rows at least two where there are several tokens."""
        graph = self._single if len(ids) == 1 else self._several
        return graph(ids, positions, rows, number)

    def _graph(self, traced: Function, inputs: Inputs) -> Graph:
        traced(*inputs)
        assert self._called is not None
        return Graph(*self._called, inputs)

    def _noting(self, module: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        """A compiler backend whose graphs tell us how they are called."""
        run = self._compile(module, examples)

        def noting(*arguments: Any) -> Any:
            self._called = run, arguments
            return run(*arguments)

        return noting


class Graph:
    """A compiled graph with its weights, waiting for inputs.

    Args:
        run: the graph.
        arguments: of one call: weights, inputs and numbers, in the graph's order.
        inputs: of that call.

    Raises:
        ValueError: a number among the arguments is none of the inputs, or an input is not among them. Taken for a
            weight, it would be the same in every call.
    """

    def __init__(self, run: Callable[..., Any], arguments: Sequence[Any], inputs: Inputs) -> None:
        self._run = run
        self._arguments = list(arguments)
        places = [(place, _meaning(argument, inputs)) for place, argument in enumerate(arguments)]
        self._open = [(place, meaning) for place, meaning in places if meaning is not None]
        if missing := {*range(len(inputs))} - {meaning for _, meaning in self._open}:
            raise ValueError(f"the compiled graph does not take its inputs {sorted(missing)}")

    def __call__(self, *inputs: Any) -> Tensor:
        """The graph's result for other inputs."""
        values = _values(inputs)
        arguments = self._arguments.copy()
        for place, meaning in self._open:
            arguments[place] = values[meaning]
        return self._run(*arguments)[0]


def _values(inputs: Sequence[Any]) -> tuple[Any, ...]:
    """All that a graph may ask for: the inputs, how many tokens, how many rows."""
    return (*inputs, len(inputs[0]), len(inputs[2]))


def _meaning(argument: Any, inputs: Inputs) -> int | None:
    """Which of `_values` an argument is; None for a weight."""
    values = _values(inputs)
    if isinstance(argument, Tensor):
        return next((place for place, value in enumerate(values) if argument is value), None)
    found = [place for place, value in enumerate(values) if not isinstance(value, Tensor) and argument == value]
    if not found:
        raise ValueError(f"the compiled graph wants {argument!r}, which is none of its inputs")
    return found[0]
