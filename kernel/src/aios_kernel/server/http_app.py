"""The endpoints of the HTTP front: OpenAI's chat completions, responses, embeddings and models; health."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any, TypeVar, cast

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from aios_kernel import errors
from aios_kernel.config import socket_of
from aios_kernel.kernel import Kernel
from aios_kernel.openai_wire import (
    EMBEDDINGS_PATH,
    EXCHANGES,
    MODELS_PATH,
    EmbeddingsExchange,
    Exchange,
    description,
    model_list,
    model_named,
)
from aios_kernel.server.http_agents import Caller, HttpAgents, Talk
from aios_kernel.server.http_approvals import APPROVALS_PATH, pending_reply, read_answer, read_pending
from aios_kernel.server.http_replies import EventStream, refusal, whole
from aios_kernel.syscalls import (
    ABI_VERSION,
    Approvals,
    Embeddings,
    KernelInfo,
    KernelStatus,
    LlmDelta,
    LlmResult,
    Ok,
    Result,
)

R = TypeVar("R", bound=Result)
E = TypeVar("E")

MOST_BODY_BYTES = 32 * 1024 * 1024
_BODY_S = 60.0
"""A body that takes longer is given up: loopback is quick, and a client that dawdles holds a connection."""
_LARGE_BODY_BYTES = 64 * 1024
"""A body beyond this is read in a thread: the loop also serves everybody else."""


class Front:
    """The endpoints, each a method."""

    def __init__(self, kernel: Kernel, agents: HttpAgents) -> None:
        self._kernel = kernel
        self._agents = agents
        self._description = description(importlib.metadata.version("aios-kernel"))

    def app(self) -> Starlette:
        """The application, without a guard."""
        asked = [Route(f"/v1{path}", self._answers(exchange), methods=["POST"]) for path, exchange in EXCHANGES.items()]
        return Starlette(
            routes=[
                *asked,
                Route(f"/v1{EMBEDDINGS_PATH}", self.embeddings, methods=["POST"]),
                Route(f"/v1{MODELS_PATH}", self.models, methods=["GET"]),
                Route(f"/v1{MODELS_PATH}/{{name:path}}", self.model, methods=["GET"]),
                Route(f"/v1{APPROVALS_PATH}", self.approvals, methods=["GET"]),
                Route(f"/v1{APPROVALS_PATH}/{{id}}", self.approve, methods=["POST"]),
                Route("/kernel", self.kernel, methods=["GET"]),
                Route("/openapi.json", self.openapi, methods=["GET"]),
                Route("/healthz", self.healthz, methods=["GET"]),
                Route("/readyz", self.readyz, methods=["GET"]),
            ],
            exception_handlers={errors.AiosError: _error, HTTPException: _http_error, Exception: _fault},
        )

    async def embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        exchange = await _read(request, EmbeddingsExchange)
        result = await _result(request, self._agents.ask(_caller(request), exchange.call), Embeddings)
        return whole(exchange.reply(result))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return whole(model_list(*await self._served(request)))

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/NAME`."""
        return whole(model_named(request.path_params["name"], *await self._served(request)))

    async def approvals(self, request: Request) -> Response:
        """`GET /v1/approvals`: what waits for you; `?wait=true&after=NUMBER` holds until there is something."""
        call = read_pending(request.query_params)
        return whole(pending_reply(await _result(request, self._agents.ask(_caller(request), call), Approvals)))

    async def approve(self, request: Request) -> Response:
        """`POST /v1/approvals/ID`: answer one."""
        call = await _read(request, functools.partial(read_answer, request.path_params["id"]))
        await _result(request, self._agents.ask(_caller(request), call), Ok)
        return whole({"id": call.id, "allow": call.allow, "remember": call.remember})

    async def kernel(self, request: Request) -> Response:
        """`GET /kernel`: where the socket is, for clients that know this URL alone; it lets nobody in."""
        return whole({"socket": str(socket_of(self._kernel.config)), "abi": ABI_VERSION})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`: what is served, for those who generate clients or tests."""
        return whole(self._description)

    async def healthz(self, request: Request) -> Response:
        """`GET /healthz`: this loop turns."""
        return whole({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """`GET /readyz`: 200 until the kernel begins to shut down."""
        if self._kernel.shutdown.is_set():
            return refusal(errors.KernelUnavailable("the kernel is shutting down", fix="aios serve"))
        return whole({"status": "ready"})

    async def _served(self, request: Request) -> tuple[list[str], float]:
        """Names that are served, and since when."""
        status = await _result(request, self._agents.ask(_caller(request), KernelInfo()), KernelStatus)
        return [status.model, *status.loras, *self._kernel.config.models], time.time() - status.uptime_s

    def _answers(self, reader: Callable[[Mapping[str, Any]], Exchange]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            exchange = await _read(request, reader)
            talk = self._agents.ask(_caller(request), exchange.call)
            if not exchange.call.stream:
                return whole(exchange.reply(await _result(request, talk, LlmResult)))
            async with _cancelled_with(request, talk):
                first = await talk.next()  # an error before it is an HTTP error, not a stream
            return EventStream(_events(request, exchange, talk, first))

        return endpoint


async def _events(
    request: Request, exchange: Exchange, talk: Talk, piece: LlmDelta | Result
) -> AsyncGenerator[bytes, None]:
    try:
        async with _cancelled_with(request, talk):
            yield exchange.begin() + _written(exchange, piece)
            while isinstance(piece, LlmDelta):
                yield _written(exchange, piece := await talk.next())
    except errors.AiosError as error:
        yield exchange.fail(error)


def _written(exchange: Exchange, piece: LlmDelta | Result) -> bytes:
    if isinstance(piece, LlmDelta):
        return exchange.delta(piece)
    assert isinstance(piece, LlmResult)
    return exchange.end(piece)


async def _result(request: Request, talk: Talk, kind: type[R]) -> R:
    async with _cancelled_with(request, talk):
        result = await talk.result()
    assert isinstance(result, kind)
    return result


@contextlib.asynccontextmanager
async def _cancelled_with(request: Request, talk: Talk) -> AsyncGenerator[None, None]:
    """Inside, a client that hangs up cancels the syscall."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        talk.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        talk.cancel()
        raise
    finally:
        watcher.cancel()


async def _read(request: Request, reader: Callable[[Mapping[str, Any]], E]) -> E:
    """The request's body, read by `reader`. Raises InvalidRequest."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, f'the content type is "{kind}"')
    data = await _body(request)
    if len(data) > _LARGE_BODY_BYTES:
        return await asyncio.to_thread(_decoded, data, reader)
    return _decoded(data, reader)


def _decoded(data: bytearray, reader: Callable[[Mapping[str, Any]], E]) -> E:
    try:
        return reader(msgspec.json.decode(data))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise errors.InvalidRequest(f"the body is not JSON: {error}") from error


async def _body(request: Request) -> bytearray:
    announced = request.headers.get("content-length", "0")
    data = bytearray()
    if announced.isdigit() and int(announced) <= MOST_BODY_BYTES:
        with _hung_up():
            async with _in_time():
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > MOST_BODY_BYTES:
                        break
                else:
                    return data
    raise HTTPException(413, f"the body is larger than {MOST_BODY_BYTES:,} bytes")


@contextlib.asynccontextmanager
async def _in_time() -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout(_BODY_S):
            yield
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {_BODY_S:g} s") from error


@contextlib.contextmanager
def _hung_up() -> Generator[None, None, None]:
    """A client that goes away in the middle of its body is no fault of ours."""
    try:
        yield
    except ClientDisconnect as error:
        raise errors.Cancelled("the client has gone") from error


def _caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.AiosError)
    return refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What is refused before a body is read: unknown paths and methods, other content types."""
    assert isinstance(error, HTTPException)
    kind = errors.NotFound if error.status_code == 404 else errors.InvalidRequest
    what = f"{request.method} {request.url.path}: {error.detail}"
    fix = "send Content-Type: application/json" if error.status_code == 415 else "GET /openapi.json says what is served"
    reply = refusal(kind(what, fix=fix), error.status_code)
    reply.headers.update(error.headers or {})
    return reply


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours; Starlette raises it again for the log."""
    return refusal(errors.InternalError(f"the HTTP front failed: {type(error).__name__}", fix="aios doctor"))
