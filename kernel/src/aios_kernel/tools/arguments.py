"""Checks a tool call's arguments against the tool's JSON schema."""

from __future__ import annotations

from typing import Any, Protocol, cast, final

import msgspec

from aios_kernel._names import shown
from aios_kernel.errors import InvalidRequest, InvalidSchema
from aios_kernel.syscalls import ToolSpec

_MAX_BYTES = 4 * 1024 * 1024


class _Problem(Protocol):
    """The part of jsonschema's ValidationError that is read here."""

    message: str
    json_path: str


def decode_arguments(tool: str, text: str) -> dict[str, Any]:
    """Read the arguments of a call.

    Raises:
        InvalidRequest: not the text of a JSON object, or more than 4 MiB.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidRequest(f"the arguments of tool {shown(tool)} have more than {_MAX_BYTES:,} characters")
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(
            f"the arguments of tool {shown(tool)} are not a JSON object: {error}",
            fix='send an object, such as {"x": 1}',
        ) from error


@final
class ArgumentChecker:
    """A compiled schema. References are resolved inside the schema only: nothing is ever fetched.

    Raises:
        InvalidSchema: the tool's parameters are no JSON schema.
    """

    def __init__(self, spec: ToolSpec) -> None:
        import jsonschema
        import referencing

        self._name = spec.name
        schema = {"type": "object"} | spec.parameters
        try:
            jsonschema.Draft202012Validator.check_schema(schema)
        except jsonschema.SchemaError as error:
            raise InvalidSchema(
                f"the parameters of tool {shown(spec.name)} are no JSON schema: {error.message}",
                fix="mend the tool's `parameters`",
            ) from error
        # An explicit registry replaces jsonschema's default, which downloads unknown references.
        self._validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())

    def check(self, arguments: dict[str, Any]) -> None:
        """Return if the arguments satisfy the schema; raise `InvalidRequest` that names the place otherwise."""
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        try:
            problem = cast("_Problem | None", best_match(self._validator.iter_errors(arguments)))
        except (Unresolvable, RecursionError) as error:
            raise InvalidSchema(
                f"the parameters of tool {shown(self._name)} cannot be applied: {error}",
                fix="mend the tool's `parameters`; references must stay inside the schema",
            ) from error
        if problem is not None:
            place = problem.json_path.replace("$", "arguments", 1)
            raise InvalidRequest(
                f"tool {shown(self._name)}: {place}: {problem.message[:500]}",
                fix="follow the tool's schema (tool.list)",
            )
