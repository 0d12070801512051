"""The one method that every call of the SDK passes, inside a scope.

Only the sending is replaced: the SDK builds the request and parses the response, so that its types, `parse`, its
stream helpers and `with_raw_response` are its own.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from aios_adapter_openai.events import AsyncEvents, SyncEvents, streamed
from aios_adapter_openai.job import Job
from aios_adapter_openai.queries import Query
from aios_adapters import Scope
from aios_kernel.errors import AiosError


def request(scope: Scope, original: Any, client: Any, /, cast_to: Any, options: Any, **streaming: Any) -> Any:
    """`SyncAPIClient.request`, answered by the kernel. Raises the SDK's own exceptions."""
    cast_to = client._maybe_override_cast_to(cast_to, options)
    job = Job(client, options)
    while True:
        try:
            response = _answer(scope, job)
            break
        except AiosError as error:
            pause_s = job.pause_after(error)
            if pause_s is None:
                raise job.native(error) from error
            time.sleep(pause_s)
    return client._process_response(cast_to=cast_to, options=options, response=response, **_complete(streaming))


async def arequest(scope: Scope, original: Any, client: Any, /, cast_to: Any, options: Any, **streaming: Any) -> Any:
    """`AsyncAPIClient.request`, answered by the kernel. Raises the SDK's own exceptions."""
    cast_to = client._maybe_override_cast_to(cast_to, options)
    job = Job(client, options)
    while True:
        try:
            response = await _aanswer(scope, job)
            break
        except AiosError as error:
            pause_s = job.pause_after(error)
            if pause_s is None:
                raise job.native(error) from error
            await asyncio.sleep(pause_s)
    return await client._process_response(cast_to=cast_to, options=options, response=response, **_complete(streaming))


def _complete(streaming: dict[str, Any]) -> dict[str, Any]:
    return {"stream": False, "stream_cls": None, **streaming}


def _answer(scope: Scope, job: Job) -> Any:
    asked = job.read()
    if isinstance(asked, Query):
        return job.whole(asked.reply(scope.call(asked.call, asked.answer, timeout_s=job.timeout_s)))
    if not asked.call.stream:
        return job.whole(asked.reply(scope.chat(asked.call, timeout_s=job.timeout_s)))
    pieces = scope.stream(asked.call, timeout_s=job.timeout_s)
    first = next(pieces)
    return streamed(job, SyncEvents, asked, first, pieces, scope.hold())


async def _aanswer(scope: Scope, job: Job) -> Any:
    asked = job.read()
    if isinstance(asked, Query):
        return job.whole(asked.reply(await scope.acall(asked.call, asked.answer, timeout_s=job.timeout_s)))
    if not asked.call.stream:
        return job.whole(asked.reply(await scope.achat(asked.call, timeout_s=job.timeout_s)))
    pieces = scope.astream(asked.call, timeout_s=job.timeout_s)
    first = await anext(pieces)
    return streamed(job, AsyncEvents, asked, first, pieces, scope.hold())
