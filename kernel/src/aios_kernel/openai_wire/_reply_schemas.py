"""JSON schemas of the answers."""

from __future__ import annotations

from collections.abc import Mapping

from aios_kernel.openai_wire._schemas import FLAG, MAPPING, NULL, TEXT, Schema, listed, ref

_COUNT: Schema = {"type": "integer", "minimum": 0}


def _told(told: Mapping[str, Schema], extra: Mapping[str, Schema] | None = None) -> Schema:
    """An object that has all of `told`, and of `extra` what there is."""
    return {"type": "object", "required": sorted(told), "properties": {**told, **(extra or {})}}


def _only(value: str) -> Schema:
    return {"const": value}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


_LOGPROB = _told({"token": TEXT, "logprob": {"type": "number"}, "top_logprobs": listed(MAPPING)})
_CALL = _told(
    {"id": TEXT, "type": _only("function"), "function": _told({"name": TEXT, "arguments": TEXT})},
)
_ANSWER = _told(
    {"role": _only("assistant"), "content": _or_null(TEXT), "refusal": NULL, "annotations": listed(MAPPING)},
    {"tool_calls": listed(_CALL, 1)},
)
_CHOICE = _told(
    {
        "index": _COUNT,
        "message": _ANSWER,
        "logprobs": _or_null(_told({"content": listed(_LOGPROB), "refusal": NULL})),
        "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
    }
)
_OUTPUT = {
    "anyOf": [
        _told({"id": TEXT, "type": _only("message"), "role": _only("assistant"), "content": listed(MAPPING)}),
        _told({"id": TEXT, "type": _only("function_call"), "call_id": TEXT, "name": TEXT, "arguments": TEXT}),
    ]
}
_MODEL = _told({"id": TEXT, "object": _only("model"), "created": _COUNT, "owned_by": TEXT})
_VECTOR = _told(
    {
        "object": _only("embedding"),
        "index": _COUNT,
        "embedding": {"anyOf": [listed({"type": "number"}, 1), TEXT]},
    }
)

REPLIES: dict[str, Schema] = {
    "ChatCompletion": _told(
        {
            "id": TEXT,
            "object": _only("chat.completion"),
            "created": _COUNT,
            "model": TEXT,
            "choices": listed(_CHOICE, 1),
            "usage": _told({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}),
        },
        {
            "aios_argmax": listed(_COUNT),
            "aios_window": MAPPING,
            "prompt_logprobs": listed(_LOGPROB),
        },
    ),
    "Response": _told(
        {
            "id": TEXT,
            "object": _only("response"),
            "created_at": _COUNT,
            "status": {"enum": ["completed", "incomplete"]},
            "error": NULL,
            "model": TEXT,
            "output": listed(_OUTPUT, 1),
            "usage": _told({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT}),
            "parallel_tool_calls": FLAG,
            "tools": listed(MAPPING),
        },
        {"aios_argmax": listed(_COUNT), "aios_window": MAPPING},
    ),
    "EmbeddingList": _told(
        {
            "object": _only("list"),
            "model": TEXT,
            "data": listed(_VECTOR, 1),
            "usage": _told({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
        }
    ),
    "Model": _MODEL,
    "ModelList": _told({"object": _only("list"), "data": listed(ref("Model"), 1)}),
    "ServerSentEvent": {
        **_told({"data": TEXT}, {"event": TEXT}),
        "description": "With `stream`: the data is a chunk or an event as JSON, or [DONE].",
    },
    "Error": _told({"error": _told({"message": TEXT, "type": TEXT, "param": NULL, "code": TEXT})}),
}
"""Schemas of the answers by name."""
