"""The kernel's copy of an `InMemoryVectorStore`: a log of what was added and deleted, one file a write.

The store stays the working copy, so ranking, scores and filters are LangChain's own, and so are the vectors: they are
kept as the program's embedder made them. After a write the log gets one file, whatever the number of documents; before
a read the files that the store has not seen are taken over: those of an earlier run, or of another process.

A program that builds its index anew in each run adds the same texts under fresh ids. Such a document takes the place of
the kept one that says the same, so that the index does not grow by a copy of itself a run.
"""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any, TypeAlias

import msgspec

from aios_adapter_langchain.places import numbered
from aios_adapter_langchain.plans import Plan
from aios_adapter_langchain.vector_log import Document, Segment, document_of, entry_of, parts
from aios_kernel.errors import NotFound, Unsupported
from aios_kernel.syscalls import Count, FileData, FileInfo, Files, StorageDelete, StorageGet, StorageList, StoragePut

_MOST_FILES = 64
"""Files that a first read may find before it writes them together."""
_TIME_DIGITS = 20

Entries: TypeAlias = dict[str, dict[str, Any]]
"""What the store holds: `id`, `text`, `metadata` and `vector` by id."""


class VectorCopy:
    """What the kernel holds of one store for one agent.

    Args:
        agent: the agent whose storage it is.
        number: which of the agent's stores.
    """

    def __init__(self, agent: str, number: int = 0) -> None:
        self._owner = f"agent/{agent}"
        self._root = numbered("langchain/vectors", number)
        self._writer = uuid.uuid4().hex[:12]
        self._seen: set[str] = set()
        self._newest_ns = 0
        self._stamps: dict[str, str] = {}
        """The file that told of a document last. The later name wins, in whatever order files are read."""
        self._known: dict[str, Any] = {}
        """The store's entries that the log holds; where the store has another object by now, it was written anew."""
        self._earlier: dict[Any, list[str]] = {}
        """Ids of documents that this store did not write itself, by what they say."""
        self._lock = threading.Lock()

    def pull(self, entries: Entries, *, fresh: bool = True) -> Plan[None]:
        """Take over what the kernel holds newer (once, if not `fresh`), and give what it has not."""
        if self._newest_ns and not fresh:
            return
        listed: Files = yield StorageList(prefix=f"{self._root}/", owner=self._owner), Files
        paths = sorted(info.path for info in listed.files)
        unseen = [path for path in paths if path not in self._seen]
        for path in unseen:
            try:
                found: FileData = yield StorageGet(path=path, owner=self._owner), FileData
            except NotFound:  # written together with others since it was listed
                continue
            segment = msgspec.msgpack.decode(found.data, type=Segment)
            with self._lock:
                self._adopt(path, segment, entries)
        self._newest_ns = self._newest_ns or 1
        yield from self.push(entries)
        if len(unseen) > _MOST_FILES and unseen == paths:
            yield from self._write_together(paths, entries)

    def push(self, entries: Entries) -> Plan[None]:
        """Write down how the store differs from the log. Raises Unsupported, once, for what cannot be written."""
        with self._lock:
            documents, unwritable = self._changed(entries)
            for document in documents:
                self._replace_earlier(document, entries)
            deleted = [id for id in self._known if id not in entries]
            self._known = dict(entries)
        try:
            yield from self._put(documents, deleted)
        except BaseException:
            with self._lock:  # it is tried again at the next access
                unwritten = {document.id for document in documents}
                self._known = {id: entry for id, entry in self._known.items() if id not in unwritten}
                self._known |= dict.fromkeys(deleted)
            raise
        if unwritable is not None:
            raise unwritable

    def _changed(self, entries: Entries) -> tuple[list[Document], Unsupported | None]:
        documents: list[Document] = []
        unwritable: Unsupported | None = None
        for id, entry in [*entries.items()]:
            if self._known.get(id) is not entry:
                try:
                    documents.append(document_of(entry))
                except Unsupported as error:
                    unwritable = error
        return documents, unwritable

    def _put(self, documents: list[Document], deleted: list[str]) -> Plan[None]:
        segments = [Segment(part) for part in parts(documents)]
        if deleted:
            segments[-1:] = [Segment(segments[-1].added if segments else [], deleted)]
        for segment in segments:
            with self._lock:
                self._newest_ns = max(self._newest_ns + 1, time.time_ns())
                path = f"{self._root}/{self._newest_ns:0{_TIME_DIGITS}d}-{self._writer}"
            yield StoragePut(path=path, data=msgspec.msgpack.encode(segment), owner=self._owner), FileInfo
            with self._lock:
                self._seen.add(path)
                self._stamps |= dict.fromkeys([*(document.id for document in segment.added), *segment.deleted], path)

    def _adopt(self, path: str, segment: Segment, entries: Entries) -> None:
        """Bring the store up to date with one file."""
        self._seen.add(path)
        self._newest_ns = max(self._newest_ns, int(path.removeprefix(f"{self._root}/")[:_TIME_DIGITS]))
        for document in segment.added:
            if not self._is_news(document.id, path):
                continue
            if document.id not in self._known and _is_made_up(document.id):
                self._earlier.setdefault(document.says, []).append(document.id)
            if not self._is_ahead(document.id, entries):
                entries[document.id] = self._known[document.id] = entry_of(document)
        for id in segment.deleted:
            if self._is_news(id, path) and not self._is_ahead(id, entries):
                self._known.pop(id, None)
                entries.pop(id, None)

    def _is_news(self, id: str, path: str) -> bool:
        before, self._stamps[id] = self._stamps.get(id, ""), max(self._stamps.get(id, ""), path)
        return before < path

    def _is_ahead(self, id: str, entries: Entries) -> bool:
        """Whether this process has written a document that the log does not hold yet."""
        return id in entries and self._known.get(id) is not entries[id]

    def _replace_earlier(self, document: Document, entries: Entries) -> None:
        """Let a document under a fresh id take the place of an earlier one that says the same."""
        ids = self._earlier.get(document.says, []) if _is_made_up(document.id) else []
        while ids:
            id = ids.pop(0)
            if id != document.id and entries.pop(id, None) is not None:
                return

    def _write_together(self, paths: list[str], entries: Entries) -> Plan[None]:
        """Put what many files say into few, whose names sort behind these and before every later one."""
        with self._lock:
            held = [entry for id, entry in [*entries.items()] if self._stamps.get(id, "~") <= paths[-1]]
        for number, part in enumerate(parts([document_of(entry) for entry in held])):
            path = f"{paths[-1]}~{number:06d}"
            yield StoragePut(path=path, data=msgspec.msgpack.encode(Segment(part)), owner=self._owner), FileInfo
            self._seen.add(path)
        for path in paths:
            yield StorageDelete(path=path, owner=self._owner), Count


def _is_made_up(id: str) -> bool:
    """Whether an id is one that LangChain makes where the program names none."""
    try:
        return str(uuid.UUID(id, version=4)) == id
    except ValueError:
        return False
