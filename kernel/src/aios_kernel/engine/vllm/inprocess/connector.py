"""Snapshots back into vLLM's KV: a connector whose other side is the host memory of this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (  # pyright: ignore[reportMissingImports]
    KVConnectorBase_V1,
    KVConnectorMetadata,
)


@dataclass
class Loads(KVConnectorMetadata):  # pyright: ignore[reportUntypedBaseClass]
    """What a step brings back: KV of each layer and the numbers of the blocks that it goes to."""

    items: list[tuple[list[Any], list[int]]] = field(default_factory=list[tuple[list[Any], list[int]]])


class HostConnector(KVConnectorBase_V1):  # pyright: ignore[reportUntypedBaseClass]
    """Both sides of it live in one process: vLLM's scheduler has one, its worker another.

    Attributes:
        stored: KV by the id of the request that it is for, and how many tokens that is; put there by the engine.
        layers: vLLM's KV, one tensor a layer, [blocks, ...]; on the worker's side.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self.stored: dict[str, tuple[list[Any], int]] = {}
        self.layers: list[Any] = []
        self._loads = Loads()

    # --- the worker's side ---

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Take note of the memory."""
        self.layers = [kv_caches[name] for name in sorted(kv_caches)]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copy what this step brings back, before its forward."""
        for data, blocks in self._get_connector_metadata().items:
            for layer, part in zip(self.layers, data, strict=True):
                layer[blocks] = part.to(layer.device)

    def read(self, blocks: list[int]) -> list[Any]:
        """A copy of these blocks in host memory, [blocks, ...] of each layer."""
        return [layer[blocks].to("cpu", copy=True) for layer in self.layers]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All is there before the forward."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved within steps; the engine reads between them."""

    def wait_for_save(self) -> None:
        """See `save_kv_layer`."""

    # --- the scheduler's side ---

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens the stored KV has beyond what is there."""
        stored = self.stored.get(request.request_id)
        return (0, False) if stored is None else (stored[1] - num_computed_tokens, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The blocks are known: the next step fills them."""
        if num_external_tokens:
            data, _ = self.stored.pop(request.request_id)
            self._loads.items.append((data, list(blocks.get_block_ids()[0][: len(data[0])])))

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """Hand the loads to the worker's side."""
        loads, self._loads = self._loads, Loads()
        return loads
