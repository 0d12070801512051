"""The kernel's copy of an `InMemoryStore`: one note an item.

The store stays the working copy, so order, filters and types are LangGraph's own. Every write goes to the kernel too,
and a read first takes over what the kernel holds newer: what an earlier process wrote, or another one. Search by
meaning, in a store that has an index, is the kernel's: its embedder takes the place of the one the store was given.

`_data` and `_vectors` are private, but LangGraph wraps them itself and says that their names stay; so stores are `Any`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.store.base import GetOp, Item, ListNamespacesOp, PutOp, SearchItem, SearchOp
from langgraph.store.memory import InMemoryStore

from aios_adapter_langchain.item_notes import item_of, note_id, note_of, prefix_filter, texts_of
from aios_adapter_langchain.places import numbered
from aios_adapter_langchain.plans import Plan
from aios_adapters._scope import suspended
from aios_kernel.errors import NotFound
from aios_kernel.syscalls import Count, MemoryAdd, MemoryDelete, MemoryGet, MemorySearch, Note, Notes

_ALL = 1_000_000


class StoreCopy:
    """What the kernel holds of one store for one agent.

    Args:
        agent: the agent whose memory it is.
        number: which of the agent's stores.
        folder: the memory below the agent's, where it is not told by the number.
    """

    def __init__(self, agent: str, number: int = 0, *, folder: str = "") -> None:
        self._space = f"agent/{agent}/{folder or numbered('langgraph-store', number)}"

    def batch(self, store: Any, ops: Sequence[Any]) -> Plan[list[Any]]:
        """What `store.batch` does; as there, reads come before all writes of the batch."""
        for op in ops:
            yield from self._refresh(store, op)
        plain = [_all_candidates(op) if _ranked(store, op) else op for op in ops]
        with suspended():
            results: list[Any] = _without_index(store).batch(plain)
        for place, op in enumerate(ops):
            if _ranked(store, op):
                results[place] = yield from self._nearest(store, op, results[place])
        last = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        for op in last.values():
            yield from self._keep(store, op)
        return results

    def _refresh(self, store: Any, op: Any) -> Plan[None]:
        """Take over what the kernel holds of the items that an operation reads."""
        if isinstance(op, GetOp):
            try:
                note: Note = yield MemoryGet(id=note_id(op.namespace, op.key), namespace=self._space), Note
            except NotFound:
                return
            _adopt(store, note)
        elif isinstance(op, SearchOp | ListNamespacesOp):
            prefix = op.namespace_prefix if isinstance(op, SearchOp) else ()
            listed: Notes = yield (
                MemorySearch(namespace=self._space, k=_ALL, filter=prefix_filter(prefix)),
                Notes,
            )
            for note in listed.notes:
                _adopt(store, note)

    def _nearest(self, store: Any, op: SearchOp, candidates: Sequence[SearchItem]) -> Plan[list[SearchItem]]:
        """Rank the items that pass the operation's filter by meaning; those without a text come last, unscored."""
        for item in candidates:
            if store._vectors[item.namespace].get(item.key):
                yield from self._hand_over(store, item)
        by_id = {note_id(item.namespace, item.key): item for item in candidates}
        wanted = _ALL if op.filter else op.offset + op.limit
        found: Notes = yield (
            MemorySearch(
                query=op.query or "",
                namespace=self._space,
                k=max(wanted, 1),
                filter=prefix_filter(op.namespace_prefix),
            ),
            Notes,
        )
        ranked = [_scored(by_id.pop(note.id), note.score) for note in found.notes if note.id in by_id]
        kept = ranked[op.offset : op.offset + op.limit]
        return kept + list(by_id.values())[: max(op.limit - len(kept), 0)]

    def _hand_over(self, store: Any, item: Item) -> Plan[None]:
        """Let the kernel embed an item that was put, and embedded by the store, while no agent was on."""
        texts = texts_of(item.value, None, store.index_config)
        yield note_of(item, self._space, texts), Note
        store._vectors[item.namespace].pop(item.key, None)

    def _keep(self, store: Any, op: PutOp) -> Plan[None]:
        store._vectors[op.namespace].pop(op.key, None)  # of an older value
        if op.value is None:
            yield MemoryDelete(id=note_id(op.namespace, op.key), namespace=self._space), Count
            return
        texts = texts_of(op.value, op.index, store.index_config)
        note: MemoryAdd = note_of(store._data[op.namespace][op.key], self._space, texts)
        yield note, Note


def _without_index(store: Any) -> Any:
    """The same items in a store that embeds nothing."""
    plain: Any = InMemoryStore()
    plain._data = store._data
    return plain


def _ranked(store: Any, op: Any) -> bool:
    """Without an index LangGraph ignores the query, and so do we."""
    return isinstance(op, SearchOp) and bool(op.query) and store.index_config is not None


def _all_candidates(op: SearchOp) -> SearchOp:
    return op._replace(query=None, offset=0, limit=_ALL)


def _adopt(store: Any, note: Note) -> None:
    """Take an item over unless the store's own is as new: the last writer wins, and an unchanged item stays itself."""
    item = item_of(note)
    held = store._data[item.namespace].get(item.key)
    if held is None or held.updated_at < item.updated_at:
        store._data[item.namespace][item.key] = item


def _scored(item: SearchItem, score: float | None) -> SearchItem:
    return SearchItem(
        namespace=item.namespace,
        key=item.key,
        value=item.value,
        created_at=item.created_at,
        updated_at=item.updated_at,
        score=score,
    )
