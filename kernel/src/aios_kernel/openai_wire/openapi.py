"""The OpenAPI description of the HTTP front, made of the names and limits that its readers use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from aios_kernel.openai_wire._reply_schemas import REPLIES
from aios_kernel.openai_wire._schemas import (
    CHAT_REQUEST,
    EMBEDDINGS_REQUEST,
    NAME,
    REQUEST_PARTS,
    RESPONSES_REQUEST,
    Schema,
    ref,
)
from aios_kernel.openai_wire.endpoints import EMBEDDINGS_PATH, MODELS_PATH
from aios_kernel.syscalls import Priority

AGENT_HEADER, PRIORITY_HEADER, PROGRAM_HEADER, GROUP_HEADER = HEADERS = (
    "x-aios-agent",
    "x-aios-priority",
    "x-aios-program",
    "x-aios-group",
)
"""What a request may say of its agent; other `x-aios-` headers are refused."""

MOST_PROGRAM_CHARACTERS = 64
PROGRAM_PATTERN = f"^[A-Za-z0-9_.-]{{1,{MOST_PROGRAM_CHARACTERS}}}$"
"""Of the program's name in its header."""

_REFUSALS = {
    "400": "What is asked cannot be read, or is not served here; the message names the field.",
    "401": "No token, or a wrong one.",
    "403": "A web page asks, or the Host is not this machine, or another agent's things are touched.",
    "404": "No such model or path.",
    "409": "The call was cancelled, or the agent was ended.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too much is waiting, or a limit is reached; Retry-After says when to come again.",
    "503": "The kernel, or its engine, is not there.",
    "504": "The call's time is up.",
}


def description(version: str) -> dict[str, Any]:
    """The document, OpenAPI 3.1; `version` is the kernel's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aios kernel",
            "version": version,
            "summary": "Chat completions, responses, embeddings and models of the kernel, as OpenAI's API spells them.",
        },
        "security": [{"token": []}],
        "paths": {
            "/v1/chat/completions": {
                "post": _asking("createChatCompletion", "CreateChatCompletion", "ChatCompletion", events=True)
            },
            "/v1/responses": {"post": _asking("createResponse", "CreateResponse", "Response", events=True)},
            f"/v1{EMBEDDINGS_PATH}": {"post": _asking("createEmbedding", "CreateEmbedding", "EmbeddingList")},
            f"/v1{MODELS_PATH}": {"get": _looking("listModels", "ModelList")},
            f"/v1{MODELS_PATH}/{{model}}": {
                "parameters": [_parameter("model", "path", NAME)],
                "get": _looking("retrieveModel", "Model"),
            },
        },
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token in run/token of the data directory; `TOKEN:NAME` names the agent.",
                }
            },
            "schemas": {
                "CreateChatCompletion": CHAT_REQUEST,
                "CreateResponse": RESPONSES_REQUEST,
                "CreateEmbedding": EMBEDDINGS_REQUEST,
                **REQUEST_PARTS,
                **REPLIES,
            },
        },
    }


def _parameter(name: str, place: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "schema": schema, "required": place == "path"}


# Names follow the rules of agents' names, of which this is the part without surprises.
_CALLER = [
    _parameter(AGENT_HEADER, "header", {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,60}$"}),
    _parameter(PRIORITY_HEADER, "header", {"enum": [*get_args(Priority)]}),
    _parameter(PROGRAM_HEADER, "header", {"type": "string", "pattern": PROGRAM_PATTERN}),
    _parameter(GROUP_HEADER, "header", {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,60}$"}),
]


def _asking(operation: str, request: str, reply: str, *, events: bool = False) -> dict[str, Any]:
    body = {"required": True, "content": _json(request)}
    return {"requestBody": body, **_looking(operation, reply, events=events)}


def _looking(operation: str, reply: str, *, events: bool = False) -> dict[str, Any]:
    content = _json(reply)
    if events:
        content["text/event-stream"] = {"schema": ref("ServerSentEvent")}
    return {
        "operationId": operation,
        "parameters": _CALLER,
        "responses": {"200": {"description": "The answer.", "content": content}, **_refusals()},
    }


def _refusals() -> Mapping[str, Any]:
    return {status: {"description": what, "content": _json("Error")} for status, what in _REFUSALS.items()}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}
