"""The connection to a model server: an event loop in a thread of its own, with a task for each open answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx
import msgspec

from aios_kernel import errors
from aios_kernel.engine.openai.failures import broken, refused
from aios_kernel.engine.openai.health import Health, Watch
from aios_kernel.engine.openai.tokens import Piece
from aios_kernel.engine.openai.wire import ReplyReader

Arrive: TypeAlias = Callable[[Piece | errors.AiosError], None]
"""Takes pieces as they come, the last of them with an `end`, or an error; called on the loop's thread."""

_LIST_S = 20.0
"""A list of models needs no thinking: who starts a kernel is not to wait longer for it."""
_LONGEST_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait for a connection, and for the next bytes of an answer."""

    connect_s: float = 10.0
    silence_s: float = 600.0


class ModelServer:
    """An OpenAI-compatible server. Its methods may be called from any thread.

    Args:
        base_url: such as `http://127.0.0.1:8000/v1`.
        api_key: sent as a bearer token; empty: none.
        patience: how long to wait.
        watch: how closely it is watched, once `watch` says so.

    Attributes:
        health: whether it answers.
    """

    def __init__(
        self, base_url: str, api_key: str = "", patience: Patience | None = None, watch: Watch | None = None
    ) -> None:
        self.url = base_url.rstrip("/")
        patience = patience or Patience()
        self._list_timeout_s = min(_LIST_S, patience.silence_s)
        timeout = httpx.Timeout(patience.silence_s, connect=patience.connect_s, pool=None)
        self._client = httpx.AsyncClient(
            base_url=self.url + "/",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            limits=httpx.Limits(max_connections=None),  # the engine admits no more than its slots
        )
        self.health = Health(self.url, self._look, watch)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="aios-openai", daemon=True)
        self._thread.start()

    def models(self) -> list[dict[str, Any]]:
        """What the server offers, as its list of models says; empty when it has no such list.

        Raises:
            EngineUnavailable: it does not answer.
            EngineError: it refuses the key.
        """
        return asyncio.run_coroutine_threadsafe(self._models(), self._loop).result()

    def ask(
        self, body: dict[str, Any], arrive: Arrive, headers: Mapping[str, str] | None = None
    ) -> Callable[[], object]:
        """Send a streamed request; gives a function that closes it, after which next to nothing arrives any more."""
        return asyncio.run_coroutine_threadsafe(self._answer(body, arrive, headers), self._loop).cancel

    def watch(self) -> None:
        """From now on `health` says whether it is up; without that it counts as up."""
        asyncio.run_coroutine_threadsafe(self.health.run(), self._loop)

    def close(self) -> None:
        """Close what is open and end the thread; blocks for a moment. May be called again."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _models(self) -> list[dict[str, Any]]:
        try:
            response = await self._client.get("models", timeout=self._list_timeout_s)
        except Exception as error:
            raise broken(error, self.url) from error
        if response.status_code in {404, 405, 501}:
            return []
        if response.status_code != 200:
            raise refused(response.status_code, response.headers, response.content, self.url)
        try:
            return [dict(entry) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.EngineError(
                f"what answers at {self.url}/models is no OpenAI-compatible server", fix="correct base_url"
            ) from error

    async def _answer(self, body: dict[str, Any], arrive: Arrive, headers: Mapping[str, str] | None) -> None:
        try:
            async with self._client.stream("POST", "chat/completions", json=body, headers=headers) as response:
                if response.status_code != 200:
                    raise refused(response.status_code, response.headers, await _start_of(response), self.url)
                await self._read(response, arrive)
        except Exception as error:  # noqa: BLE001 - whatever the transport raises ends this answer only
            failure = broken(error, self.url)
            if isinstance(error, httpx.ConnectError):
                self.health.refused(str(error))
            elif isinstance(failure, errors.EngineUnavailable):
                self.health.doubt()
            arrive(failure)

    async def _read(self, response: httpx.Response, arrive: Arrive) -> None:
        """Server-sent events up to the end mark."""
        reader = ReplyReader()
        async for line in response.aiter_lines():
            self.health.heard()
            kind, _, data = line.partition(":")
            if kind not in {"data", "error"}:
                continue  # comments that keep the connection alive, names of events, blank lines
            if data.strip() == "[DONE]":
                break
            event = _decoded(data)
            text = reader.chunk(event if kind == "data" else {"error": event})  # llama-server's way to fail
            if text:
                arrive(Piece.of(text))
        arrive(reader.end())

    async def _look(self, timeout_s: float) -> int:
        response = await self._client.get("models", timeout=timeout_s)
        return response.status_code

    async def _close(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()


def _decoded(data: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise errors.EngineError(f"the model server sent an event that is no JSON object: {error}") from error


async def _start_of(response: httpx.Response) -> bytes:
    data = b""
    async for part in response.aiter_bytes():
        data += part
        if len(data) > _LONGEST_ERROR_BYTES:
            break
    return data[:_LONGEST_ERROR_BYTES]
