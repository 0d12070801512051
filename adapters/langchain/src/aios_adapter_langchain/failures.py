"""The kernel's errors as LangChain's model errors.

LangChain acts on the kind of a failure: retries ask `is_retryable`, fallbacks and the summarisation middleware wait for
`ContextOverflowError`. So an error that a model call raises is of both families, the kernel's class and LangChain's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from langchain_core import exceptions as langchain

from aios_adapters import Scope
from aios_kernel import errors


class ContextOverflow(errors.ContextTooLong, langchain.ContextOverflowError):
    """Prompt and answer exceed the model's window."""


class ModelNotFound(errors.UnknownModel, langchain.ModelNotFoundError):
    """The model's name is neither loaded nor mapped."""


class SchemaRejected(errors.InvalidSchema, langchain.ModelInvalidRequestError):
    """A JSON schema that cannot be compiled."""


class RequestUnsupported(errors.Unsupported, langchain.ModelInvalidRequestError):
    """Understood, but not offered here."""


class RequestRejected(errors.InvalidRequest, langchain.ModelInvalidRequestError):
    """The call's arguments cannot be served."""


class ModelBusy(errors.Busy, langchain.ModelRateLimitError):
    """Try again after `retry_after_s`."""


class ModelTimeout(errors.DeadlineExceeded, langchain.ModelTimeoutError):
    """The call's time has passed."""


class ModelUnreachable(errors.KernelUnavailable, langchain.ModelConnectionError):
    """No kernel answers."""


class ModelForbidden(errors.AccessDenied, langchain.ModelPermissionDeniedError):
    """The agent holds no right."""


class NotAuthenticated(errors.AuthError, langchain.ModelAuthenticationError):
    """The token is wrong."""


class ModelOutOfMemory(errors.OutOfMemory, langchain.ModelAPIError):
    """The KV pool cannot hold this context."""


class ModelFailed(errors.EngineError, langchain.ModelAPIError):
    """The engine failed while it computed."""


class KernelFailed(errors.InternalError, langchain.ModelAPIError):
    """A fault of the kernel itself."""


_KINDS: tuple[type[errors.AiosError], ...] = (
    ContextOverflow,
    ModelNotFound,
    SchemaRejected,
    RequestUnsupported,
    RequestRejected,
    ModelBusy,
    ModelTimeout,
    ModelUnreachable,
    ModelForbidden,
    NotAuthenticated,
    ModelOutOfMemory,
    ModelFailed,
    KernelFailed,
)
_BY_CODE = {kind.code: kind for kind in _KINDS}


@contextmanager
def as_model_errors(scope: Scope) -> Generator[None]:
    """Raise the kernel's errors as LangChain's kinds too; the text, the caller and the fix stay."""
    try:
        yield
    except errors.AiosError as error:
        error.with_caller(scope.agent, "llm.chat")
        kind = next((_BY_CODE[base.code] for base in _ancestors(error) if base.code in _BY_CODE), None)
        if kind is None or isinstance(error, langchain.ModelError):
            raise
        raise kind(
            error.message, agent=error.agent, syscall=error.syscall, fix=error.fix, retry_after_s=error.retry_after_s
        ) from error


def _ancestors(error: errors.AiosError) -> list[type[errors.AiosError]]:
    return [base for base in type(error).__mro__ if issubclass(base, errors.AiosError)]
