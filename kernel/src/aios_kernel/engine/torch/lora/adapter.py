"""An adapter in host memory, its weights in the order in which they are multiplied."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aios_kernel.engine.torch.lora.config import LoraConfig, read_config
from aios_kernel.engine.torch.lora.sites import Site
from aios_kernel.errors import ConfigError, Unsupported

WEIGHTS = "adapter_model.safetensors"
PANEL, LANES, RANKS = 32, 16, 4
"""Outputs lie in panels, inputs are padded to whole vectors, ranks to what is multiplied at once (lora.h)."""
LAYOUT = np.dtype([("a", np.int64), ("b", np.int64), ("rank", np.int64), ("scale", np.float64)])
"""`Site` of lora.h: where a layer's two matrices begin among the weights; rank 0: the layer stays as it is."""
_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<half>[AB])\.weight")
_AGAIN = "save or download the adapter again"


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Weights of an adapter.

    Attributes:
        name: that it was loaded under.
        digest: of its files' content, 32 bytes.
        weights: of all layers, one layer's matrices behind the other, in the model's dtype: A as [rank, inputs], B as
            [panels, rank, 32 outputs], padded with zeros.
        layout: where each of the model's layers (`find_sites`) finds its own, of dtype `LAYOUT`.
    """

    name: str
    digest: bytes
    weights: Tensor
    layout: NDArray[Any]

    def matrices(self, site: int, shape: Site, weights: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """A, [rank, inputs], and B, [rank, outputs], of a layer; None if it stays as it is.

        Args:
            site: number of the layer.
            shape: of the layer.
            weights: a copy of the adapter's on another device.
        """
        a, b, rank, _ = self.layout[site].tolist()
        if not rank:
            return None
        weights = self.weights if weights is None else weights
        inputs, outputs = _whole(shape.inputs, LANES), _whole(shape.outputs, PANEL)
        down = weights[a : a + rank * inputs].view(rank, inputs)[:, : shape.inputs]
        up = weights[b : b + rank * outputs].view(-1, rank, PANEL).transpose(0, 1).reshape(rank, outputs)
        return down, up[:, : shape.outputs]

    def scale(self, site: int) -> float:
        """What the product of a layer's matrices is multiplied by."""
        return float(self.layout[site]["scale"])


@dataclass(frozen=True, slots=True)
class _Pair:
    """What a file holds of one layer."""

    site: int
    a: Tensor
    b: Tensor
    scale: float


def read_adapter(name: str, folder: Path, sites: Sequence[Site], dtype: torch.dtype) -> Adapter:
    """Read an adapter in PEFT's format into host memory.

    Args:
        name: to load it under.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        sites: the model's layers.
        dtype: of the model.

    Raises:
        ConfigError: a file is missing, damaged or of another model.
        Unsupported: it is of a kind that is not served, or changes what is no linear layer of this model.
    """
    config = read_config(folder)
    tensors, content = _tensors(folder / WEIGHTS)
    pairs = list(_pairs(folder, config, tensors, {site.name: number for number, site in enumerate(sites)}, sites))
    digest = hashlib.sha256(msgspec.json.encode(config) + content).digest()
    return Adapter(name, digest, *_packed(pairs, sites, dtype))


def _tensors(path: Path) -> tuple[dict[str, Tensor], bytes]:
    """The tensors of a safetensors file and a digest of it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        raw = path.read_bytes()
        return load(raw), hashlib.sha256(raw).digest()
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", fix=_AGAIN) from error


def _pairs(
    folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor], numbers: Mapping[str, int], sites: Sequence[Site]
) -> Iterator[_Pair]:
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or found["layer"] not in numbers:
            raise Unsupported(
                f"the adapter {folder} changes {key}, which is no linear layer of this model",
                fix="train it on the linear layers of attention and feed-forward blocks, or serve a merged model",
            )
        halves.setdefault(found["layer"], {})[found["half"]] = tensor
    if not halves:
        raise ConfigError(f"the adapter {folder} holds no weights", fix=_AGAIN)
    for layer, pair in sorted(halves.items(), key=lambda item: numbers[item[0]]):
        site = sites[numbers[layer]]
        rank = config.rank(layer)
        for half, shape in (("A", (rank, site.inputs)), ("B", (site.outputs, rank))):
            _check(f"lora_{half} of {layer} in {folder}", pair.get(half), shape)
        yield _Pair(numbers[layer], pair["A"], pair["B"], config.scale(layer))


def _check(what: str, tensor: Tensor | None, shape: tuple[int, int]) -> None:
    if tensor is None:
        raise ConfigError(f"{what} is missing", fix=_AGAIN)
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise ConfigError(
            f"{what} is {list(tensor.shape)} of {tensor.dtype}, and this model wants {list(shape)} of floats",
            fix="choose an adapter of this very model, or serve the adapter's own: aios serve MODEL",
        )
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"{what} holds numbers that are not finite", fix="train or download the adapter again")


def _packed(pairs: Sequence[_Pair], sites: Sequence[Site], dtype: torch.dtype) -> tuple[Tensor, NDArray[Any]]:
    """All weights one behind the other, and where they are."""
    layout = np.zeros(len(sites), dtype=LAYOUT)
    size = 0
    for pair in pairs:
        site, rank = sites[pair.site], _whole(len(pair.a), RANKS)
        behind = size + rank * _whole(site.inputs, LANES)
        layout[pair.site] = (size, behind, rank, pair.scale)
        size = behind + rank * _whole(site.outputs, PANEL)
    weights = torch.zeros(size, dtype=dtype)
    for pair in pairs:
        a, b, rank, _ = layout[pair.site].tolist()
        inputs, outputs = (_whole(n, to) for n, to in zip(_sizes(sites[pair.site]), (LANES, PANEL), strict=True))
        down = weights[a:b].view(rank, inputs)
        down[: len(pair.a), : pair.a.shape[1]] = pair.a
        up = torch.zeros(rank, outputs, dtype=dtype)
        up[: len(pair.a), : len(pair.b)] = pair.b.T
        weights[b : b + rank * outputs].view(-1, rank, PANEL).copy_(up.view(rank, -1, PANEL).transpose(0, 1))
    return weights, layout


def _sizes(site: Site) -> tuple[int, int]:
    return site.inputs, site.outputs


def _whole(n: int, to: int) -> int:
    return math.ceil(n / to) * to
