"""Embeddings, models and errors."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse, Model

from aios_kernel import errors
from aios_kernel.openai_wire import EmbeddingsExchange, error_object, error_reply, model_list, model_named, status_of
from aios_kernel.syscalls import Embeddings, Usage

RESULT = Embeddings([[0.5, -1.0], [0.25, 2.0]], "mini", Usage(prompt_tokens=7))


def test_embeddings_as_floats() -> None:
    exchange = EmbeddingsExchange({"input": ["a", "b"], "model": "m", "user": "u"})
    assert (exchange.call.texts, exchange.call.model) == (["a", "b"], "m")
    reply = CreateEmbeddingResponse.model_validate(exchange.reply(RESULT))
    assert [item.embedding for item in reply.data] == RESULT.vectors
    assert [item.index for item in reply.data] == [0, 1]
    assert (reply.model, reply.usage.total_tokens) == ("mini", 7)


def test_embeddings_as_base64() -> None:
    exchange = EmbeddingsExchange({"input": "a", "encoding_format": "base64"})
    assert exchange.call.texts == ["a"]
    told = exchange.reply(RESULT)["data"][1]["embedding"]
    assert list(array("f", base64.b64decode(told))) == [0.25, 2.0]


@pytest.mark.parametrize(
    ("body", "kind", "named"),
    [
        ({}, errors.InvalidRequest, "input"),
        ({"input": []}, errors.InvalidRequest, "input"),
        ({"input": {"a": 1}}, errors.InvalidRequest, "input"),
        ({"input": [1, 2]}, errors.Unsupported, "token numbers"),
        ({"input": [[1], [2]]}, errors.Unsupported, "token numbers"),
        ({"input": "a", "dimensions": 5}, errors.Unsupported, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, errors.InvalidRequest, "encoding_format"),
    ],
)
def test_embeddings_that_cannot_be(body: dict[str, Any], kind: type[errors.AiosError], named: str) -> None:
    with pytest.raises(kind, match=named):
        EmbeddingsExchange(body)


def test_models() -> None:
    listed = model_list(["a", "b", "a"], created_s=12.7)
    assert [Model.model_validate(entry).id for entry in listed["data"]] == ["a", "b"]
    assert model_named("b", ["a", "b"], 12.7) == listed["data"][1]
    with pytest.raises(errors.UnknownModel, match="nope"):
        model_named("nope", ["a"])


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.InvalidRequest("x"), 400, "invalid_request_error", "invalid_request"),
        (errors.Unsupported("x"), 400, "invalid_request_error", "unsupported"),
        (errors.InvalidSchema("x"), 400, "invalid_request_error", "invalid_schema"),
        (errors.ContextTooLong("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (errors.AuthError("x"), 401, "authentication_error", "invalid_api_key"),
        (errors.AccessDenied("x"), 403, "permission_error", "access_denied"),
        (errors.UnknownModel("x"), 404, "invalid_request_error", "model_not_found"),
        (errors.NotFound("x"), 404, "invalid_request_error", "not_found"),
        (errors.Cancelled("x"), 409, "invalid_request_error", "cancelled"),
        (errors.Busy("x"), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.EngineError("x"), 500, "server_error", "engine"),
        (errors.InternalError("x"), 500, "server_error", "internal"),
        (errors.KernelLocked("x"), 503, "server_error", "kernel_locked"),
        (errors.OutOfMemory("x"), 503, "server_error", "out_of_memory"),
        (errors.DeadlineExceeded("x"), 504, "server_error", "deadline_exceeded"),
    ],
)
def test_errors_have_a_status(error: errors.AiosError, status: int, kind: str, code: str) -> None:
    assert status_of(error) == status
    told = error_object(error)
    assert (told["type"], told["code"], told["param"]) == (kind, code, None)


def test_an_error_reply_says_the_fix_and_when_to_retry() -> None:
    busy = error_reply(errors.Busy("full", agent="a", syscall="llm.chat", fix="wait", retry_after_s=2.2))
    assert (busy.status, busy.headers) == (429, {"x-should-retry": "true", "retry-after": "3"})
    assert busy.body["error"]["message"] == 'full\n  agent "a" called llm.chat\n  fix: wait'
    assert error_reply(errors.EngineError("x")).headers == {"x-should-retry": "false"}
    assert error_reply(errors.InvalidRequest("x"), status=413).status == 413
