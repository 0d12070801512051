"""Values between steps: plain JSON on the way, the annotated type at its end.

Beside what msgspec knows (dataclasses, Structs, TypedDicts, ...) pydantic models are understood by their own methods,
and subclasses of `str`, which some frameworks give for texts, count as text.
"""

from __future__ import annotations

from typing import Any

import msgspec

from aios_kernel.errors import InvalidRequest


def plain(output: Any) -> Any:
    """A step's output as plain JSON values. Raises InvalidRequest for what is none."""
    try:
        return msgspec.json.decode(msgspec.json.encode(output, enc_hook=_encoded))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InvalidRequest(
            f"its output, of the type {type(output).__name__}, cannot be written as JSON: {error}",
            fix="return text, numbers, lists, dicts, dataclasses or models from a step",
        ) from error


def converted(value: Any, kind: Any, what: str) -> Any:
    """A JSON value as the annotated type. Raises InvalidRequest when it does not fit; `what` names its place."""
    try:
        return msgspec.convert(value, kind, dec_hook=_decoded)
    except (msgspec.ValidationError, TypeError, ValueError, NotImplementedError) as error:
        raise InvalidRequest(
            f"{what} should be {kind}: {error}",
            fix="steps exchange JSON: mend the annotation or what the step before it returns",
        ) from error


def _encoded(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"a {type(value).__name__} has no JSON form")


def _decoded(kind: type, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise NotImplementedError(f"a {kind.__name__} cannot be made of JSON")
    return validate(value)
