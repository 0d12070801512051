"""Reading one JSON object of a request field by field; what nobody reads is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from aios_kernel.errors import InvalidRequest, Unsupported

LARGEST = 2**63 - 1
"""The largest integer that is taken anywhere."""


class Reader:
    """The fields of a JSON object; a null field counts as absent.

    Every method takes a field out and raises InvalidRequest when it has another type. `end` refuses what is left.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise InvalidRequest(f"{path or 'the request'} must be a JSON object, not {_kind(value)}")
        fields = cast("dict[object, Any]", value)
        self.path = path
        self._left = {str(name): field for name, field in fields.items() if field is not None}

    def at(self, name: str) -> str:
        """The full name of a field, such as `messages[0].content`."""
        return f"{self.path}.{name}" if self.path else name

    def names(self) -> list[str]:
        """Names of the fields that are left."""
        return list(self._left)

    def value(self, name: str) -> Any:
        """A field of any type; None when absent."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._left.pop(name, None)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(name, "a string", value)

    def needed(self, name: str) -> str:
        """A string that must be there."""
        value = self.text(name)
        if value is None:
            raise InvalidRequest(f'the field "{self.at(name)}" is missing')
        return value

    def flag(self, name: str) -> bool | None:
        """A boolean."""
        value = self._left.pop(name, None)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(name, "true or false", value)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number between `low` and `high`, both included."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number", value)
        if not low <= value <= high:  # also refuses what is not a number
            raise self._wrong(name, f"between {low:g} and {high:g}", value)
        return float(value)

    def integer(self, name: str, low: int, high: int = LARGEST) -> int | None:
        """An integer between `low` and `high`, both included."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "an integer", value)
        if not low <= value <= high:
            raise self._wrong(name, f"at least {low}" if value < low else f"at most {high}", value)
        return value

    def mapping(self, name: str) -> dict[str, Any] | None:
        """A JSON object as it stands, such as a schema."""
        value = self._left.pop(name, None)
        if value is None or isinstance(value, dict):
            return cast("dict[str, Any] | None", value)
        raise self._wrong(name, "a JSON object", value)

    def child(self, name: str) -> Reader | None:
        """A JSON object to be read in its turn."""
        value = self._left.pop(name, None)
        return None if value is None else Reader(value, self.at(name))

    def items(self, name: str) -> list[tuple[str, Any]]:
        """The elements of a list, each with its full name; empty when absent."""
        value = self._left.pop(name, None)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, "a list", value)
        elements = cast("list[Any]", value)
        return [(f"{self.at(name)}[{index}]", element) for index, element in enumerate(elements)]

    def neutral(self, name: str, *harmless: object) -> None:
        """A field of which only values that change nothing are served. Raises Unsupported for any other."""
        value = self._left.pop(name, None)
        # True is 1 in Python, and not in JSON.
        if value is not None and not any(value == other and type(value) is type(other) for other in harmless):
            raise refused(f"{self.at(name)} = {_shown(value)}")

    def end(self, inert: Collection[str] = ()) -> None:
        """Refuse the fields that nobody has read, except the `inert` ones. Raises Unsupported."""
        for name in self._left:
            if name not in inert:
                raise refused(self.at(name))

    def _wrong(self, name: str, wanted: str, value: object) -> InvalidRequest:
        return InvalidRequest(f'the field "{self.at(name)}" must be {wanted}, not {_shown(value)}')


def refused(what: str, fix: str = "leave it out of the request") -> Unsupported:
    """The error for something that OpenAI's API knows and this kernel does not serve."""
    return Unsupported(f"{what} is not supported here", fix=fix)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
