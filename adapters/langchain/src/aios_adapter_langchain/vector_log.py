"""What a file of a vector store's log says, and how its documents are written."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from aios_kernel.errors import Unsupported

_MOST_DOCUMENTS = 1000
"""In one file."""

_serializer = JsonPlusSerializer()  # msgpack, never pickle


class Document(msgspec.Struct, frozen=True, array_like=True):
    """A document and its vector: numbers of `kind`, an `array` type code, as many as the embedder made."""

    id: str
    text: str
    metadata: tuple[str, bytes]
    kind: str
    vector: bytes

    @property
    def says(self) -> tuple[str, bytes]:
        """What tells it from another document, but for the id."""
        return self.text, self.metadata[1]


class Segment(msgspec.Struct, frozen=True):
    """One write: documents that were added or written anew, and ids that were deleted."""

    added: list[Document]
    deleted: list[str] = []


def document_of(entry: Mapping[str, Any]) -> Document:
    """An entry of the store as it is written. Raises Unsupported for metadata that msgpack has not."""
    try:
        metadata = _serializer.dumps_typed(entry["metadata"])
    except TypeError as error:
        raise Unsupported(
            f"the metadata of a document cannot be written as msgpack: {error}",
            fix='put plain values into it, or use @aios.agent(memory="mediated")',
        ) from error
    numbers = array("d", entry["vector"])
    narrow = array("f", numbers)
    vector = narrow if array("d", narrow) == numbers else numbers  # most models give float32
    return Document(entry["id"], entry["text"], metadata, vector.typecode, vector.tobytes())


def entry_of(document: Document) -> dict[str, Any]:
    """The store's entry that a document was."""
    vector = array(document.kind)
    vector.frombytes(document.vector)
    return {
        "id": document.id,
        "vector": vector.tolist(),
        "text": document.text,
        "metadata": _serializer.loads_typed(document.metadata),
    }


def parts(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """The documents in as many files as they need."""
    for at in range(0, len(documents), _MOST_DOCUMENTS):
        yield [*documents[at : at + _MOST_DOCUMENTS]]
