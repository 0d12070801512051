"""vLLM's engine core with our hooks in it, made for one model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aios_kernel.errors import ConfigError, UnknownModel

_CONNECTOR = "aios_kernel.engine.vllm.inprocess.connector"
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the second runner has no place for a sampler of others
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_AOT_COMPILE": "0",
}


class VllmCore:
    """One model on vLLM, in this process. There can be only one at a time: vLLM's parallel state is the process's.

    Args:
        model: a folder or a Hugging Face id.
        blocks: of its KV pool, usable ones.
        arguments: further ones of vLLM's `EngineArgs`, such as `dtype`, `block_size` or `max_model_len`.
        max_loras: adapters that there will be; 0: none.

    Raises:
        ConfigError: vLLM refuses the model or the arguments.
    """

    def __init__(self, model: str, blocks: int | None, arguments: Mapping[str, Any], max_loras: int = 0) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self.max_loras = max_loras
        self._loras: dict[str, tuple[int, Path]] = {}
        try:
            self.core = self._made(model, blocks, arguments)
        except (ValueError, RuntimeError, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"vLLM does not load {model}: {first}", fix="look into the log: aios doctor --log"
            ) from error
        self.scheduler: Any = self.core.scheduler
        self.scheduler_side: Any = self.scheduler.connector
        self.manager: Any = self.scheduler.kv_cache_manager
        self.pool: Any = self.manager.block_pool
        config: Any = self.core.vllm_config
        self.block_size = int(self.scheduler.block_size)
        self.blocks = int(self.pool.get_num_free_blocks())
        self.window = int(config.model_config.max_model_len)
        self.vocab = int(config.model_config.get_vocab_size())
        self.max_batch = int(config.scheduler_config.max_num_seqs)
        self.max_step_tokens = int(config.scheduler_config.max_num_batched_tokens)
        self.dtype = str(config.model_config.dtype)
        self.on_cpu = config.device_config.device_type == "cpu"

    @property
    def worker_side(self) -> Any:
        """The connector that has the KV's memory."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group  # pyright: ignore[reportMissingImports]

        return get_kv_transfer_group()

    def add_lora(self, name: str, folder: Path) -> None:
        """Name an adapter in PEFT format; vLLM reads it when it is first used."""
        self._loras.setdefault(name, (len(self._loras) + 1, folder))

    def lora(self, name: str | None) -> Any:
        """VLLM's request for an adapter; None for none. Raises UnknownModel."""
        if name is None:
            return None
        if name not in self._loras:
            raise UnknownModel(
                f'there is no LoRA adapter "{name}"; loaded: {", ".join(sorted(self._loras)) or "none"}',
                fix=f"aios serve --lora {name}=FOLDER",
            )
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        number, folder = self._loras[name]
        return LoRARequest(name, number, str(folder))

    @property
    def loras(self) -> list[str]:
        """Names of the adapters."""
        return sorted(self._loras)

    def close(self) -> None:
        """Free everything."""
        self.core.shutdown()

    def _made(self, model: str, blocks: int | None, arguments: Mapping[str, Any]) -> Any:
        from vllm.config import KVTransferConfig  # pyright: ignore[reportMissingImports]
        from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
        from vllm.v1.engine.core import EngineCore  # pyright: ignore[reportMissingImports]
        from vllm.v1.executor import Executor  # pyright: ignore[reportMissingImports]

        from aios_kernel.engine.vllm.inprocess.processor import KernelSampler
        from aios_kernel.engine.vllm.inprocess.scheduler import PlannedScheduler

        connector = KVTransferConfig(
            kv_connector="HostConnector", kv_connector_module_path=_CONNECTOR, kv_role="kv_both"
        )
        options: dict[str, Any] = {
            "model": model,
            "skip_tokenizer_init": True,
            "scheduler_cls": PlannedScheduler,
            "async_scheduling": False,
            "logits_processors": [KernelSampler],
            "kv_transfer_config": connector,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "scheduler_reserve_full_isl": False,  # the kernel admits
            "num_gpu_blocks_override": None if blocks is None else blocks + 1,  # one is vLLM's own
            **({"enable_lora": True, "max_loras": self.max_loras} if self.max_loras else {}),
            **arguments,
        }
        config = EngineArgs(**options).create_engine_config()
        return EngineCore(config, Executor.get_class(config), log_stats=False)
