"""Operations of ours that compiled graphs call forty times a step, without the dispatcher between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def call_directly(operation: Any, function: Callable[..., Tensor]) -> None:
    """Have an operation call its function for tensors that are just that.

    The dispatcher turns every argument into a value of its own and back: as much time again as the function takes in
    Python. Whoever traces (a compiler with its fake tensors) goes through it as before, and so does everybody where
    torch has no such place to reach into.

    Args:
        operation: an overload (`torch.ops.aios.multiply.default`), its first argument a tensor.
        function: its only implementation.
    """
    through = getattr(operation, "_op", None)
    if through is None:
        return

    def call(first: Any, *others: Any, **options: Any) -> Any:
        return (function if type(first) is Tensor else through)(first, *others, **options)

    operation._op = call
