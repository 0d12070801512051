"""The connection to a vLLM server that the kernel runs: calls wait while it starts, and are told of its death."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aios_kernel.engine.openai.server import Arrive, ModelServer
from aios_kernel.engine.openai.tokens import Piece
from aios_kernel.engine.vllm.child import ChildServer
from aios_kernel.errors import AiosError, EngineError, EngineUnavailable

_POLL_S = 0.1
_SETTLE_S = 0.5
"""A connection breaks a moment before the process that held it is gone."""


class ChildModelServer(ModelServer):
    """See `ModelServer`.

    Args:
        base_url: of the child.
        api_key: of the child.
        child: what serves there.
    """

    def __init__(self, base_url: str, api_key: str, child: ChildServer) -> None:
        super().__init__(base_url, api_key)
        self._child = child

    async def _answer(self, body: dict[str, Any], arrive: Arrive, headers: Mapping[str, str] | None) -> None:
        while not self._child.ready.is_set():
            if self._child.failure is not None:
                arrive(self._child.failure)
                return
            await asyncio.sleep(_POLL_S)
        life, last = self._child.lives, list[AiosError]()

        def pass_on(piece: Piece | AiosError) -> None:
            if isinstance(piece, EngineError):
                last.append(piece)  # the process may be about to die; that is what is to be told
            else:
                arrive(piece)

        await super()._answer(body, pass_on, headers)
        if last:
            arrive(await self._explained(last[0], life))

    async def _explained(self, error: AiosError, life: int) -> AiosError:
        """The error of a call that broke off, or what became of the server."""
        for _ in range(int(_SETTLE_S / _POLL_S)):
            death = self._child.ended() or (self._child.death if self._child.lives != life else "")
            if death:
                return EngineUnavailable(
                    f"{death} in the middle of this answer", retry_after_s=5.0, fix="send the call again"
                )
            await asyncio.sleep(_POLL_S)
        return error
