"""Errors in OpenAI's spelling: HTTP status, headers and JSON body."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aios_kernel import errors

_STATUS: Mapping[type[errors.AiosError], int] = {
    errors.InvalidRequest: 400,
    errors.UnknownModel: 404,
    errors.AuthError: 401,
    errors.AccessDenied: 403,
    errors.NotFound: 404,
    errors.Cancelled: 409,
    errors.Busy: 429,
    errors.KernelUnavailable: 503,
    errors.EngineUnavailable: 503,
    errors.OutOfMemory: 503,
    errors.DeadlineExceeded: 504,
}
"""Status by class; a subclass has its parent's, everything else 500."""

_CODES: Mapping[type[errors.AiosError], str] = {
    errors.ContextTooLong: "context_length_exceeded",
    errors.UnknownModel: "model_not_found",
    errors.AuthError: "invalid_api_key",
    errors.Busy: "rate_limit_exceeded",
}
"""Codes that clients of OpenAI look for; the others are our own."""

_RETRIED = (errors.Busy, errors.KernelUnavailable, errors.EngineUnavailable)
"""What may succeed when it is sent again as it is."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An HTTP answer that says what went wrong."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def error_reply(error: errors.AiosError, status: int | None = None) -> ErrorReply:
    """The answer for an error; `status` overrides the one of its class.

    `x-should-retry` tells OpenAI's SDK not to repeat what would fail again.
    """
    status = status or status_of(error)
    headers = {"x-should-retry": "true" if isinstance(error, _RETRIED) else "false"}
    if error.retry_after_s is not None or isinstance(error, errors.Busy):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
    return ErrorReply(status, {"error": error_object(error, status)}, headers)


def error_object(error: errors.AiosError, status: int | None = None) -> dict[str, Any]:
    """The `error` member of an OpenAI error body; the message ends with the fix."""
    return {
        "message": str(error),
        "type": _type_of(status or status_of(error)),
        "param": None,
        "code": _nearest(_CODES, error, error.code),
    }


def status_of(error: errors.AiosError) -> int:
    """The HTTP status of an error."""
    return _nearest(_STATUS, error, 500)


def _nearest(table: Mapping[type[errors.AiosError], Any], error: errors.AiosError, default: Any) -> Any:
    for kind in type(error).__mro__:
        if kind in table:
            return table[kind]
    return default


def _type_of(status: int) -> str:
    special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return special.get(status, "invalid_request_error" if status < 500 else "server_error")
