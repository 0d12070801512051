"""Upkeep of kept checkpoints: copying a thread, pruning it, deleting what some runs wrote.

A checkpoint's file leaves out the channel values that an older file of its thread has. So before older ones go, those
that stay are written anew with everything they need: a crash in between leaves too much, never too little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from langgraph.checkpoint.memory import InMemorySaver

from aios_adapter_langchain.plans import Plan
from aios_adapter_langchain.saver_copy import SaverCopy

Place: TypeAlias = tuple[str, str, str]
"""Thread, namespace and id of a checkpoint."""


def copied(copy: SaverCopy, saver: InMemorySaver, source: str, target: str) -> Plan[None]:
    """Give `target` all that `source` has."""
    for place in [*_places(saver, source)]:
        _, namespace, id = place
        saver.storage[target][namespace][id] = saver.storage[source][namespace][id]
        if place in saver.writes:
            saver.writes[target, namespace, id].update(saver.writes[place])
    for key in [key for key in saver.blobs if key[0] == source]:
        saver.blobs[(target, *key[1:])] = saver.blobs[key]
    for place in [*_places(saver, target)]:
        yield from copy.keep(saver, place)


def pruned(copy: SaverCopy, saver: InMemorySaver, thread: str) -> Plan[None]:
    """Keep the latest checkpoint of each namespace, and what its delta channels are made of."""
    namespaces = saver.storage.get(thread, {})
    needed = {place for namespace, held in namespaces.items() if held for place in _chain(saver, thread, namespace)}
    yield from _keep_only(copy, saver, thread, needed)


def without_runs(copy: SaverCopy, saver: InMemorySaver, runs: frozenset[str]) -> Plan[None]:
    """Delete the checkpoints whose metadata name one of the runs."""
    for thread in [*saver.storage]:
        places = [*_places(saver, thread)]
        kept = {place for place in places if _metadata(saver, place).get("run_id") not in runs}
        if len(kept) < len(places):
            yield from _keep_only(copy, saver, thread, kept)


def _keep_only(copy: SaverCopy, saver: InMemorySaver, thread: str, kept: Iterable[Place]) -> Plan[None]:
    kept = set(kept)
    for place in sorted(kept):
        yield from copy.keep(saver, place)
    for place in [*_places(saver, thread)]:
        if place not in kept:
            _, namespace, id = place
            del saver.storage[thread][namespace][id]
            saver.writes.pop(place, None)
            yield from copy.forget(place)


def _places(saver: InMemorySaver, thread: str) -> Iterable[Place]:
    for namespace, held in saver.storage.get(thread, {}).items():
        for id in held:
            yield thread, namespace, id


def _chain(saver: InMemorySaver, thread: str, namespace: str) -> list[Place]:
    """The latest checkpoint, then its ancestors for as long as a delta channel of it has no snapshot among them."""
    held = saver.storage[thread][namespace]
    id: str | None = max(held)
    open_channels = set(_metadata(saver, (thread, namespace, id)).get("counters_since_delta_snapshot") or {})
    chain: list[Place] = []
    while id is not None and id in held:
        chain.append((thread, namespace, id))
        versions = saver.serde.loads_typed(held[id][0])["channel_versions"]
        blobs = {name: saver.blobs.get((thread, namespace, name, versions.get(name))) for name in open_channels}
        open_channels = {name for name, blob in blobs.items() if blob is None or blob[0] == "empty"}
        if not open_channels:
            break
        id = held[id][2]
    return chain


def _metadata(saver: InMemorySaver, place: Place) -> dict[str, Any]:
    thread, namespace, id = place
    return saver.serde.loads_typed(saver.storage[thread][namespace][id][1])
