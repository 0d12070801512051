"""One request of the SDK: read for the kernel, answered with the SDK's own response and exception objects."""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import openai

from aios_adapter_openai.queries import Query, reader_of
from aios_kernel import errors
from aios_kernel.openai_wire import Exchange, error_reply

_PAUSE_S = 0.5
"""Between tries on a full queue that does not say how long."""


class Job:
    """A request that would have gone to the network.

    Attributes:
        request: the HTTP request in the SDK's own type, without credentials; it never leaves the process.
        timeout_s: the deadline that the caller asked for. The SDK's default of ten minutes, made for a service that
            always has room, is nobody's wish: without another the kernel's own limit holds.
    """

    def __init__(self, client: Any, options: Any) -> None:
        self._client = client
        self._options = options
        self._began = time.monotonic()
        self._reader = reader_of(options.method, str(options.url))
        self._tries_left: int = options.get_max_retries(client.max_retries)
        self.request = self._build()
        self.timeout_s = _timeout_of(client, options)

    @property
    def library(self) -> Any:
        """The HTTP library that the SDK is built on: httpx, or httpx2 in openai 3."""
        return sys.modules[type(self.request).__module__.partition(".")[0]]

    def read(self) -> Exchange | Query:
        """What is asked. Raises InvalidRequest, or Unsupported for a path that the kernel does not serve."""
        if self._reader is None:
            raise errors.Unsupported(
                f"{self._options.method.upper()} {self._options.url} of OpenAI's API is not served by the kernel, and "
                "an agent's call never goes past it",
                fix="make this call outside of the decorated agent",
            )
        try:
            body = msgspec.json.decode(self.request.content or b"{}")
        except msgspec.DecodeError as error:
            raise errors.InvalidRequest(f"the request is no JSON: {error}") from error
        return self._reader(body)

    def response(self, status: int = 200, **content: Any) -> Any:
        """A response to the request, in the SDK's own type."""
        response = self.library.Response(status, request=self.request, **content)
        response.elapsed = datetime.timedelta(seconds=time.monotonic() - self._began)
        return response

    def whole(self, body: Mapping[str, Any]) -> Any:
        """A response with a JSON body."""
        headers = {"content-type": "application/json"} | _named(body)
        return self.response(headers=headers, content=msgspec.json.encode(body))

    def pause_after(self, error: errors.AiosError) -> float | None:
        """Seconds to wait before the next try; None when trying again is useless or was tried often enough."""
        if not isinstance(error, errors.Busy) or self._tries_left <= 0:
            return None
        self._tries_left -= 1
        return error.retry_after_s or _PAUSE_S

    def native(self, error: errors.AiosError) -> openai.OpenAIError:
        """The SDK's own exception for an error of the kernel, with its text."""
        if isinstance(error, errors.DeadlineExceeded):
            late = openai.APITimeoutError(request=self.request)
            late.message, late.args = str(error), (str(error),)
            return late
        if isinstance(error, errors.KernelUnavailable):
            return openai.APIConnectionError(message=str(error), request=self.request)
        reply = error_reply(error)
        response = self.response(reply.status, headers=reply.headers, json=reply.body)
        return self._client._make_status_error(str(error), body=reply.body, response=response)

    def _build(self) -> Any:
        options = self._options.model_copy()
        if self._reader is None:  # its body may be a file, which nobody is going to read
            options.json_data = options.files = options.content = None
        headers = options.headers if isinstance(options.headers, Mapping) else {}
        # Without credentials the SDK builds no request, unless they are left out on purpose.
        options.headers = {**headers, "Authorization": openai.Omit()}
        return self._client._build_request(options)


def _named(body: Mapping[str, Any]) -> dict[str, str]:
    """The header that the SDK shows as `_request_id`."""
    return {"x-request-id": body["id"]} if isinstance(body.get("id"), str) else {}


def _timeout_of(client: Any, options: Any) -> float | None:
    timeout = client.timeout if isinstance(options.timeout, openai.NotGiven) else options.timeout
    if timeout is None or timeout == openai.DEFAULT_TIMEOUT:
        return None
    return timeout if isinstance(timeout, int | float) else timeout.read
