"""Structured output: what the answer's text must look like."""

from __future__ import annotations

from typing import Any

from aios_kernel.errors import InvalidRequest
from aios_kernel.openai_wire._reader import Reader, refused

_INERT = frozenset({"name", "description", "strict"})
"""The schema always binds here, strict or not; its name and description are not shown to the model."""


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
    inner.end(_INERT)
    if not flat:
        form.end()
    return schema
