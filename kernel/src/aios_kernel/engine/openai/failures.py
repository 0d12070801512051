"""What goes wrong at a model server, as errors of the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import httpx
import msgspec

from aios_kernel import errors
from aios_kernel.engine.openai.wire import is_too_long, message_of


def refused(status: int, headers: Mapping[str, str], body: bytes, url: str) -> errors.AiosError:
    """The error for an answer whose status is not 200."""
    said = f"the model server at {url} answered {status}: {_said(body)}"
    if status == 429:
        return errors.Busy(said, retry_after_s=_retry_after(headers) or 1.0, fix="ask again later, or lower its load")
    if status in {401, 403}:
        return errors.EngineError(said, fix="set AIOS_API_KEY to a key of that server, and restart the kernel")
    if status == 404:
        return errors.UnknownModel(said, fix=f"check base_url and the model's name: curl {url}/models")
    if status == 413 or (status in {400, 422, 500} and is_too_long(body.decode(errors="replace"))):
        return errors.ContextTooLong(said, fix="shorten the conversation")
    if 400 <= status < 500:
        return errors.InvalidRequest(said, fix="the server may lack a feature that the call asks for")
    if status >= 500:
        return errors.EngineUnavailable(said, retry_after_s=_retry_after(headers), fix="look into the server's log")
    return errors.EngineError(said, fix="check base_url: it usually ends in /v1")


def broken(error: Exception, url: str) -> errors.AiosError:
    """The error for what the transport raised."""
    if isinstance(error, errors.AiosError):
        return error
    if isinstance(error, httpx.TimeoutException):
        said = f"the model server at {url} was silent for too long ({type(error).__name__})"
        return errors.EngineUnavailable(said, fix="look whether it hangs or is overloaded")
    if isinstance(error, httpx.ConnectError):
        said = f"no model server answers at {url}: {error}"
        return errors.EngineUnavailable(said, fix="start the server, or correct base_url")
    said = f"the connection to the model server at {url} broke: {type(error).__name__}: {error}"
    return errors.EngineUnavailable(said, fix="look into the server's log")


def _said(body: bytes) -> str:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return message_of(msgspec.json.decode(body))
    return message_of(body.decode(errors="replace"))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header; a date in it is not worth the trouble."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(headers.get("retry-after", "")))
    return None
