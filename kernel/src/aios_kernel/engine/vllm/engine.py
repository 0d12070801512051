"""The openai engine over a vLLM server that the kernel started."""

from __future__ import annotations

from collections.abc import Collection

from aios_kernel.engine.openai.engine import OpenAIEngine
from aios_kernel.engine.openai.servers import Servers
from aios_kernel.engine.vllm.child import ChildServer
from aios_kernel.scheduler.settings import ServerHints


class VllmEngine(OpenAIEngine):
    """See `OpenAIEngine`; closed with the server."""

    name = "vllm"

    def __init__(
        self,
        servers: Servers,
        model: str,
        child: ChildServer,
        *,
        slots: int,
        hints: ServerHints,
        loras: Collection[str] = (),
    ) -> None:
        super().__init__(servers, model, slots=slots, hints=hints, loras={name: name for name in loras})
        self.fingerprint = f"vllm:{model}"
        self._child = child

    def close(self) -> None:
        """Close every request, and end the server."""
        super().close()
        self._child.close()
