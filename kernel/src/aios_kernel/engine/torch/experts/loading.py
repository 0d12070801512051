"""Loading a mixture without its experts: transformers loads the rest, the experts stay in the checkpoint's files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from aios_kernel.engine.expert_options import ExpertOptions
from aios_kernel.engine.torch.experts.checkpoint import ExpertFiles
from aios_kernel.engine.torch.experts.cold import ColdExperts, WithCold, loss_of, make_cold
from aios_kernel.engine.torch.experts.forms import ExpertShape
from aios_kernel.engine.torch.experts.mixture import CachedMixture, MixtureShape, StoredExperts, cache_bytes
from aios_kernel.engine.torch.experts.module import CachedExperts, experts_in
from aios_kernel.engine.torch.experts.transfer import HostStore, Store
from aios_kernel.engine.torch.host_memory import available_bytes
from aios_kernel.errors import ConfigError, Unsupported

_log = logging.getLogger(__name__)

_PLAIN = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
"""What transformers says of experts (`use_experts_implementation`) that are as `ExpertShape` has them."""
_HOST_SHARE = 0.5
"""Share of the free host memory that experts for a CUDA device may take; with more they stay in the files."""
_MEASURED = (4, 64)
"""Sequences and tokens, drawn at random, with which uses are counted and the loss of int8 is measured."""


def class_without_experts(kind: type[Any]) -> type[Any]:
    """A model's class whose experts hold no weights, to be loaded as the class itself, and then to be connected."""

    def __init__(self: Any, config: Any, *args: Any, **options: Any) -> None:
        kind.__init__(self, config, *args, **options)
        _replace(self)

    ignored = [*(getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()), r"\.experts\."]
    # transformers looks for what a model can do by its class's name and module.
    body = {"__init__": __init__, "__module__": kind.__module__, "_keys_to_ignore_on_load_unexpected": ignored}
    return type(kind.__name__, (kind,), body)


def connect(
    model: Any, folder: Path, options: ExpertOptions, through: Callable[[Store], Store] = lambda store: store
) -> CachedMixture:
    """Give a model that was loaded without experts those of its checkpoint.

    Args:
        model: of a class by `class_without_experts`, on its device and in its dtype.
        folder: of the checkpoint.
        options: of the cache.
        through: what stands between the files and the cache, such as a slower device that is simulated.

    Raises:
        ConfigError: it has no experts, some are missing, or the cache holds none.
        Unsupported: they are stored in a way that is not known.
    """
    modules = experts_in(model)
    if not modules:
        raise ConfigError(f"{folder.name} is no mixture of experts", fix="leave expert_cache out")
    parameter = next(model.parameters())
    expert = modules[0].shape
    shape = MixtureShape(len(modules), expert, parameter.dtype)
    files = ExpertFiles(folder, [_layer_of(model, module) for module in modules], expert)
    place = _Place(files, shape, parameter.device, options, through)
    mixture = place.mixture(None)
    _serve(model, mixture)
    if options.int8:
        mixture = _with_cold(model, mixture, place)
    _log.info(
        "experts: %d of %.1f MB each in %d layers, %.2f GB in all; a cache of %.2f GB, %d in int8",
        shape.count,
        shape.expert_bytes / 1e6,
        shape.layers,
        shape.count * shape.expert_bytes / 1e9,
        mixture.cache.budget / 1e9,
        mixture.status().int8_experts,
    )
    return mixture


def mixture_of(model: nn.Module) -> CachedMixture | None:
    """What serves a model's experts; None for a model that holds its own or has none."""
    modules = experts_in(model)
    return cast("CachedMixture", modules[0].source) if modules else None


def _replace(model: nn.Module) -> None:
    place = 0
    for parent in list(model.modules()):
        children: list[tuple[str, Any]] = [*parent.named_children()]
        for name, child in children:
            if not _is_experts(child):
                continue
            if any(getattr(child, key, wanted) != wanted for key, wanted in _PLAIN.items()) or (
                getattr(child, "has_post_expert_norm", False)
            ):
                raise Unsupported(
                    f"the experts of {type(model).__name__} are not of the form down(gate(x) * up(x))",
                    fix="leave expert_cache out",
                )
            shape = ExpertShape(int(child.num_experts), child.down_proj.shape[1], child.down_proj.shape[2])
            setattr(parent, name, CachedExperts(place, shape, child._apply_gate))
            place += 1


def _is_experts(module: Any) -> bool:
    """Whether it is what transformers lets be replaced by another implementation of experts."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.ndim == 3 and hasattr(module, "_apply_gate")


def _layer_of(model: nn.Module, wanted: nn.Module) -> int:
    name = next(name for name, module in model.named_modules() if module is wanted)
    words = name.split(".")
    return int(words[words.index("layers") + 1])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model's experts are and how they are to be served."""

    files: ExpertFiles
    shape: MixtureShape
    device: torch.device
    options: ExpertOptions
    through: Callable[[Store], Store]

    def mixture(self, cold: ColdExperts | None) -> CachedMixture:
        """A cache over the files and, for cold experts, their own file."""
        store: Store = self.files if cold is None else WithCold(self.files, cold)
        if self.device.type == "cuda" and _fits_host(store, self.shape):
            store = HostStore(store, self.shape.count, pinned=True)
        stored = StoredExperts(self.through(store), self.files.dtype, self.files.digest(), cold)
        budget = cache_bytes(self.options.cache, self.shape)
        return CachedMixture(stored, self.shape, self.device, budget, self.options.mode)


def _fits_host(store: Store, shape: MixtureShape) -> bool:
    return sum(map(store.stored_bytes, range(shape.count))) <= available_bytes() * _HOST_SHARE


def _serve(model: nn.Module, mixture: CachedMixture) -> None:
    modules = experts_in(model)
    routers = [*map(_router_of, _parents(model, modules))]
    for module, router in zip(modules, [*routers[1:], None], strict=True):
        module.connect(mixture)
        predicts = mixture.history.mode == "predict" and router is not None
        module.next_router = (router,) if predicts and router is not None else None


def _parents(model: nn.Module, modules: Sequence[CachedExperts]) -> list[nn.Module]:
    return [parent for parent in model.modules() if any(child in modules for child in parent.children())]


def _router_of(block: nn.Module) -> Tensor | None:
    """The weight of the router beside a block's experts, [experts, hidden]."""
    weight = getattr(getattr(block, "gate", None), "weight", None)
    return weight.detach() if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _with_cold(model: Any, mixture: CachedMixture, place: _Place) -> CachedMixture:
    """Serve some experts in int8; at the first time for a checkpoint, choose, convert and measure."""
    files, expert, share = place.files, place.shape.expert, place.options.int8
    path = (place.options.folder or _cache_folder()) / f"{files.digest()}-{share:g}.safetensors"
    cold, full = _opened(path, expert), None
    if cold is None or cold.loss is None:
        full = _logits(model)
        if cold is None:
            make_cold(path, files, files.dtype, expert, mixture.history.least_used(share))
            cold = ColdExperts(path, expert)
    mixture.cache.close()
    served = place.mixture(cold)
    _serve(model, served)
    if full is not None:
        cold.loss = loss = loss_of(full, _logits(model))
        _log.info("int8 costs up to %.3g of a logit; the experts are in %s", loss.logit_difference, path)
    return served


def _opened(path: Path, expert: ExpertShape) -> ColdExperts | None:
    try:
        return ColdExperts(path, expert)
    except (OSError, ValueError, KeyError, TypeError):  # not made yet, or damaged: it is made anew
        return None


def _logits(model: Any) -> Tensor:
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.get_text_config().vocab_size, _MEASURED, generator=source)
    with torch.inference_mode():
        rows = [model(input_ids=row[None].to(model.device), use_cache=False).logits[0].float().cpu() for row in ids]
    return torch.cat(rows)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aios" / "experts"
