"""JSON schemas of what the readers of this package take, with the readers' own names and limits.

They describe and do not validate: the readers do, and say what is wrong by name. That both mean the same is tested with
cases drawn from these schemas and from their opposites (tests/outside/test_http_schema.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from aios_kernel.openai_wire._content import CHAT_PARTS, PART_INERT, RESPONSES_PARTS
from aios_kernel.openai_wire._format import FORMAT_INERT
from aios_kernel.openai_wire._items import CALL_INERT, MESSAGE_INERT
from aios_kernel.openai_wire._messages import CHAT_MESSAGE_INERT
from aios_kernel.openai_wire._reader import LARGEST
from aios_kernel.openai_wire._sampling import MOST_ANSWERS, MOST_DIGITS, MOST_TOKENS, MOST_TOP_LOGPROBS
from aios_kernel.openai_wire._tools import MODES, TOOL_INERT
from aios_kernel.openai_wire.chat_request import CHAT_INERT
from aios_kernel.openai_wire.embeddings import EMBEDDING_FORMATS
from aios_kernel.openai_wire.responses_request import INCLUDED, RESPONSES_INERT

Schema: TypeAlias = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
MAPPING: Schema = {"type": "object"}
NULL: Schema = {"type": "null"}


def ref(name: str) -> Schema:
    """A schema among the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def fields(needed: Mapping[str, Schema], others: Mapping[str, Schema], inert: Collection[str] = ()) -> Schema:
    """An object as a `Reader` takes it: a null is an absent field, and what nobody reads may be nothing else."""
    anything = {name: Schema(description="Accepted without effect.") for name in sorted(inert)}
    return {
        "type": "object",
        "required": sorted(needed),
        "properties": {**needed, **{name: _or_null(schema) for name, schema in others.items()}, **anything},
        "additionalProperties": NULL,
    }


def listed(items: Schema, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def number(low: float, high: float) -> Schema:
    """A number in a range."""
    return {"type": "number", "minimum": low, "maximum": high}


def integer(low: int, high: int = LARGEST) -> Schema:
    """An integer in a range."""
    return {"type": "integer", "minimum": low, "maximum": high}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def _one_of(*values: Any) -> Schema:
    return {"enum": [*values]}


def _content(parts: Mapping[str, str]) -> Schema:
    """Text, or parts of it; see `read_text`."""
    kinds: dict[str, list[str]] = {}
    for kind, field in parts.items():
        kinds.setdefault(field, []).append(kind)
    forms = [fields({"type": _one_of(*names), field: TEXT}, {}, PART_INERT) for field, names in kinds.items()]
    return {"anyOf": [TEXT, listed({"anyOf": forms})]}


def _chat_message() -> Schema:
    content = {"content": _content(CHAT_PARTS)}
    call = fields(
        {"id": TEXT, "function": fields({"name": TEXT}, {"arguments": TEXT})}, {"type": _one_of("function")}, ["index"]
    )
    said = fields({"role": _one_of("system", "developer", "user")}, content, CHAT_MESSAGE_INERT)
    answered = fields({"role": _one_of("assistant")}, {**content, "tool_calls": listed(call)}, CHAT_MESSAGE_INERT)
    returned = fields(
        {"role": _one_of("tool"), "tool_call_id": TEXT}, {**content, "name": TEXT}, CHAT_MESSAGE_INERT - {"name"}
    )
    return {"anyOf": [said, answered, returned]}


def _input_item() -> Schema:
    content = _content(RESPONSES_PARTS)
    roles = _one_of("system", "developer", "user", "assistant")
    message = fields({"role": roles}, {"content": content, "type": _one_of("message")}, MESSAGE_INERT)
    call = fields({"type": _one_of("function_call"), "call_id": TEXT, "name": TEXT}, {"arguments": TEXT}, CALL_INERT)
    output = fields({"type": _one_of("function_call_output"), "call_id": TEXT}, {"output": content}, CALL_INERT)
    thought = {"type": "object", "required": ["type"], "properties": {"type": _one_of("reasoning")}}
    return {"anyOf": [message, call, output, thought]}


def _tool(flat: bool) -> Schema:
    kind, about = {"type": _one_of("function")}, {"description": TEXT, "parameters": MAPPING}
    if flat:
        return fields({**kind, "name": NAME}, about, TOOL_INERT)
    return fields({**kind, "function": fields({"name": NAME}, about, TOOL_INERT)}, {})


def _tool_choice(flat: bool) -> Schema:
    kind = {"type": _one_of("function")}
    named = {"name": TEXT} if flat else {"function": fields({"name": TEXT}, {})}
    return {"anyOf": [_one_of(*sorted(MODES)), fields({**kind, **named}, {})]}


def _format(flat: bool) -> Schema:
    plain = fields({"type": _one_of("text", "json_object")}, {})
    kind = {"type": _one_of("json_schema")}
    if flat:
        return {"anyOf": [plain, fields({**kind, "schema": MAPPING}, {}, FORMAT_INERT)]}
    return {"anyOf": [plain, fields({**kind, "json_schema": fields({"schema": MAPPING}, {}, FORMAT_INERT)}, {})]}


def _sampling() -> dict[str, Schema]:
    digits = f"^[0-9]{{1,{MOST_DIGITS}}}$"
    return {
        "temperature": number(0, 2),
        "top_p": {**number(0, 1), "exclusiveMinimum": 0},
        "top_k": integer(-1, MOST_TOKENS),
        "min_p": number(0, 1),
        "seed": integer(-LARGEST - 1),
        "top_logprobs": integer(0, MOST_TOP_LOGPROBS),
        "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        "repetition_penalty": number(0.01, 100),
        "logit_bias": {
            "type": "object",
            "patternProperties": {digits: _or_null(number(-100, 100))},
            "additionalProperties": NULL,
        },
        "aios_forced": TEXT,
    }


def _structures(prefix: str = "") -> dict[str, Schema]:
    return {f"{prefix}json": MAPPING, f"{prefix}regex": TEXT, f"{prefix}choice": listed(NAME)}


CHAT_REQUEST = fields(
    {"messages": listed(ref("ChatMessage"), 1)},
    {
        "model": TEXT,
        "tools": listed(ref("ChatTool")),
        "tool_choice": _tool_choice(flat=False),
        "parallel_tool_calls": FLAG,
        "response_format": _format(flat=False),
        "structured_outputs": fields({}, _structures()),
        **_structures("guided_"),
        **_sampling(),
        "max_tokens": integer(1, MOST_TOKENS),
        "max_completion_tokens": integer(1, MOST_TOKENS),
        "logprobs": FLAG,
        "prompt_logprobs": integer(0, MOST_TOP_LOGPROBS),
        "stop": {"anyOf": [NAME, listed(NAME)]},
        "n": integer(1, MOST_ANSWERS),
        "stream": FLAG,
        "stream_options": fields({}, {"include_usage": FLAG}, ["include_obfuscation"]),
        "modalities": _one_of(["text"]),
    },
    CHAT_INERT,
)
RESPONSES_REQUEST = fields(
    {"input": {"anyOf": [TEXT, listed(ref("InputItem"), 1)]}},
    {
        "model": TEXT,
        "instructions": TEXT,
        "tools": listed(ref("ResponsesTool")),
        "tool_choice": _tool_choice(flat=True),
        "parallel_tool_calls": FLAG,
        "text": fields({}, {"format": _format(flat=True)}, ["verbosity"]),
        **_sampling(),
        "max_output_tokens": integer(1, MOST_TOKENS),
        "include": listed(_one_of(*sorted(INCLUDED))),
        "metadata": MAPPING,
        "background": _one_of(False),
        "truncation": _one_of("disabled"),
        "stream": FLAG,
        "stream_options": fields({}, {}, ["include_obfuscation"]),
    },
    RESPONSES_INERT,
)
EMBEDDINGS_REQUEST = fields(
    {"input": {"anyOf": [TEXT, listed(TEXT, 1)]}},
    {"model": TEXT, "encoding_format": _one_of(*sorted(EMBEDDING_FORMATS))},
    ["user"],
)

REQUEST_PARTS: dict[str, Schema] = {
    "ChatMessage": _chat_message(),
    "ChatTool": _tool(flat=False),
    "InputItem": _input_item(),
    "ResponsesTool": _tool(flat=True),
}
"""Schemas that requests refer to."""
