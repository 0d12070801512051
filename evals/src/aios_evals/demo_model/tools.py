"""The four tools that the demo model can call, as small real implementations."""

import ast
import operator
from collections.abc import Callable
from typing import Final

TOOL_ARGUMENTS: Final[dict[str, str]] = {
    "calculator": "expression",
    "lookup": "item",
    "recall": "query",
    "remember": "note",
}

PRICES: Final[dict[str, str]] = {
    "zebra-42": "14.5",
    "kiwi_7": "12.5",
    "apple": "0.8",
    "green tea": "6.25",
    "Falcon-9": "62000",
    "bolt M4": "0.15",
    "O'Neil lamp": "39.9",
    "caf\u00e9 cup": "7",
    "C++ book": "48.75",
    "cable #3": "5.2",
    "A/B switch": "18",
    "paper A4": "4.6",
}

_MAX_EXPRESSION: Final = 200
_STOP_WORDS: Final = frozenset({"a", "an", "and", "is", "of", "that", "the", "to"})

_BINARY: Final[dict[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculator(expression: str) -> str:
    """Work out an arithmetic expression with + - * / and brackets.

    Args:
        expression: For example ``3 * (14.5 + 2)``.

    Returns:
        The result with at most four decimals, or a text that starts with ``error:``.
    """
    if len(expression) > _MAX_EXPRESSION:
        return "error: expression too long"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError, OverflowError):
        return f"error: cannot read {expression}"
    return _number_text(value)


def _value(node: ast.expr) -> float:
    """Value of a whitelisted node; any other node is refused, so that no code can run."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # pyright: ignore[reportReturnType] - narrowed by the type test above
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise ValueError(ast.dump(node))


def _number_text(value: float) -> str:
    """Integers in full, other numbers with at most four decimals and no trailing zeros."""
    if isinstance(value, int):
        return str(value)
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def lookup(item: str, prices: dict[str, str] | None = None) -> str:
    """Look up the price of an item.

    Args:
        item: The exact name of the item.
        prices: Price list; the demo's own ``PRICES`` without one.

    Returns:
        The price, or ``not found: ITEM``.
    """
    return (PRICES if prices is None else prices).get(item, f"not found: {item}")


class Notes:
    """A list of notes with search by shared words: the smallest memory that works."""

    def __init__(self, notes: list[str] | None = None) -> None:
        """Start with the given notes, oldest first."""
        self.notes: list[str] = list(notes or [])

    def remember(self, note: str) -> str:
        """Keep a note."""
        self.notes.append(note)
        return "saved"

    def recall(self, query: str, limit: int = 3) -> str:
        """Return the notes that share words with the query, most relevant first, one a line."""
        wanted = _content_words(query)
        scored = [(len(wanted & _content_words(note)), note) for note in self.notes]
        # sorted() is stable: among equal notes the older one stays first.
        best = sorted((pair for pair in scored if pair[0]), key=lambda pair: -pair[0])
        return "\n".join(note for _, note in best[:limit]) or "no notes found"


def _content_words(text: str) -> set[str]:
    return set(text.lower().split()) - _STOP_WORDS
