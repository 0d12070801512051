"""Operations that are called without the dispatcher: for tensors only, never while somebody traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aios_kernel.engine.torch.direct import call_directly

calls: list[type] = []


def double(x: Tensor, times: int = 2) -> Tensor:
    calls.append(type(x))
    return x * times


@pytest.fixture(scope="module")
def operation() -> Iterator[Any]:
    library = torch.library.Library("aios_test_direct", "FRAGMENT")
    library.define("double(Tensor x, int times=2) -> Tensor")
    library.impl("double", double, "CPU")
    torch.library.register_fake("aios_test_direct::double", lambda x, times=2: torch.empty_like(x), lib=library)
    made = torch.ops.aios_test_direct.double.default
    call_directly(made, double)
    yield made
    library._destroy()


def test_tensors_go_straight_to_the_function(operation: Any) -> None:
    with torch.profiler.profile() as watched:
        assert operation(torch.ones(2), 3).tolist() == [3.0, 3.0]
        assert operation(torch.ones(2), times=4).tolist() == [4.0, 4.0]
    assert not [event for event in watched.events() if "aios_test_direct" in event.name]


def test_whoever_traces_sees_the_operation(operation: Any) -> None:
    calls.clear()
    with FakeTensorMode() as mode:
        assert isinstance(operation(mode.from_tensor(torch.ones(2))), torch._subclasses.FakeTensor)
    assert not calls
    seen: list[str] = []

    def noting(module: Any, _examples: Any) -> Any:
        seen.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    compiled = torch.compile(lambda x: operation(x) + 1, backend=noting, fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
    assert "aios_test_direct.double.default" in seen


def test_torch_without_such_a_place_is_left_alone() -> None:
    call_directly(other := object(), double)
    assert not hasattr(other, "_op")
