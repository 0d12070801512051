"""The linear layers of a model that an adapter can change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

MARK = "lora_site"
"""Attribute of a layer, and of whatever takes its place, that holds its number; -1: adapters do not change it."""


@dataclass(frozen=True, slots=True)
class Site:
    """A linear layer: its name in the model and its sizes."""

    name: str
    inputs: int
    outputs: int


def find_sites(model: Any) -> list[Site]:
    """Number the linear layers that see every token (so no experts, and not the head), before they are packed."""
    head = model.get_output_embeddings()
    sites: list[Site] = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module is not head and ".experts." not in name:
            setattr(module, MARK, len(sites))
            sites.append(Site(name, module.in_features, module.out_features))
    return sites


def site_of(module: nn.Module) -> int:
    """The number of a layer, or -1."""
    return int(getattr(module, MARK, -1))
