"""Structured output: what the answer's text must look like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader, refused

FORMAT_INERT = frozenset({"name", "description", "strict"})
"""The schema always binds here, strict or not; its name and description are not shown to the model."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What holds the answer's text; at most one of these."""

    schema: dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] = field(default_factory=list[str])


def read_structure(fields: Reader, form: Reader | None, *, flat: bool = False) -> Structure:
    """The structure that a request asks for.

    OpenAI's own `form` (`read_format`), or vLLM's `structured_outputs`, or the older `guided_json`, `guided_regex` and
    `guided_choice`.
    """
    asked = [Structure(schema=schema)] if (schema := read_format(form, flat=flat)) is not None else []
    inner = fields.child("structured_outputs")
    if inner is not None:
        asked += _read_constraints(inner, "")
        inner.end()
    asked += _read_constraints(fields, "guided_")
    if len(asked) > 1:
        raise InvalidRequest("the request asks for several structures of one answer", fix="send one of them")
    return asked[0] if asked else Structure()


def _read_constraints(fields: Reader, prefix: str) -> list[Structure]:
    asked: list[Structure] = []
    schema = fields.mapping(f"{prefix}json")
    if schema is not None:
        asked.append(Structure(schema=schema))
    regex = fields.text(f"{prefix}regex")
    if regex is not None:
        asked.append(Structure(regex=regex))
    options = fields.items(f"{prefix}choice")
    for path, option in options:
        if not isinstance(option, str) or not option:
            raise InvalidRequest(f'the field "{path}" must be a string that is not empty')
    if options:
        asked.append(Structure(choice=[option for _, option in options]))
    return asked


def read_format(form: Reader | None, *, flat: bool = False) -> dict[str, Any] | None:
    """The JSON schema that the answer must satisfy: None for plain text, `{}` for any JSON object.

    `form` is Chat Completions' `response_format`, or with `flat` the `text.format` of the Responses API.
    """
    if form is None:
        return None
    kind = form.needed("type")
    if kind == "text":
        form.end()
        return None
    if kind == "json_object":
        form.end()
        return {}
    if kind != "json_schema":
        raise refused(f'{form.path} of type "{kind}"', fix="use text, json_object or json_schema")
    inner = form if flat else form.child("json_schema")
    if inner is None:
        raise InvalidRequest(f'the field "{form.at("json_schema")}" is missing')
    schema = inner.mapping("schema")
    if schema is None:
        raise InvalidRequest(f'the field "{inner.at("schema")}" is missing')
    inner.end(FORMAT_INERT)
    if not flat:
        form.end()
    return schema
