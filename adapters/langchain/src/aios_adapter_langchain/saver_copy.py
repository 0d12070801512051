"""The kernel's copy of an `InMemorySaver`: files that hold what the saver's own serializer wrote.

The saver stays the working copy, so its semantics are LangGraph's own. Every write is put into the kernel too, and
before a read the files that the saver has not seen are loaded: those of an earlier process, or of another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeAlias
from urllib.parse import quote

import msgspec

from aios_adapter_langchain.places import numbered
from aios_adapter_langchain.plans import Plan
from aios_kernel.errors import NotFound, Unsupported
from aios_kernel.syscalls import (
    Count,
    FileData,
    FileInfo,
    Files,
    StorageDelete,
    StorageGet,
    StorageList,
    StoragePut,
)

_LONGEST_PART = 120

Version: TypeAlias = str | int | float
Typed: TypeAlias = tuple[str, bytes]
"""Kind and bytes, as a serializer of LangGraph writes a value."""


class _Blob(msgspec.Struct, frozen=True, array_like=True):
    """A channel's value at a version."""

    channel: str
    version: Version
    value: Typed


class _Write(msgspec.Struct, frozen=True, array_like=True):
    """A task's write to a channel that no checkpoint holds yet."""

    task: str
    index: int
    channel: str
    value: Typed
    path: str


class _CheckpointFile(msgspec.Struct, frozen=True, tag="checkpoint"):
    """A checkpoint, with the channel values that no older file of its thread holds."""

    thread: str | int
    namespace: str
    id: str
    checkpoint: Typed
    metadata: Typed
    parent: str | None
    blobs: list[_Blob]


class _WritesFile(msgspec.Struct, frozen=True, tag="writes"):
    """Pending writes of one task to a checkpoint."""

    thread: str | int
    namespace: str
    id: str
    writes: list[_Write]


class SaverCopy:
    """What the kernel holds of one saver for one agent.

    Args:
        agent: the agent whose storage it is.
        number: which of the agent's savers.
        root: the folder, where it is not told by the number.
    """

    def __init__(self, agent: str, number: int = 0, *, root: str = "") -> None:
        self._owner = f"agent/{agent}"
        self._root = root or numbered("langgraph/checkpoints", number)
        self._seen: dict[str, int] = {}
        self._blobs: set[tuple[Any, ...]] = set()

    def before_read(self, saver: Any, config: Any) -> Plan[None]:
        """Load what the saver has not seen of a thread; of all threads without a config."""
        prefix = f"{self._root}/" if config is None else f"{self._folder(config['configurable']['thread_id'])}/"
        listed = yield StorageList(prefix=prefix, owner=self._owner), Files
        for info in listed.files:
            if self._seen.get(info.path) == info.version:
                continue
            try:
                found = yield StorageGet(path=info.path, owner=self._owner), FileData
            except NotFound:  # deleted since it was listed
                continue
            self._load(saver, found.data)
            self._seen[info.path] = found.info.version

    def after_put(self, saver: Any, saved: Any, checkpoint: Any) -> Plan[None]:
        """Keep the checkpoint that `saver.put` has just taken; `saved` is the config that it returned."""
        where = saved["configurable"]
        thread, namespace, id = where["thread_id"], where["checkpoint_ns"], where["checkpoint_id"]
        keys = [(thread, namespace, *item) for item in checkpoint["channel_versions"].items()]
        missing = [key for key in keys if key not in self._blobs and key in saver.blobs]
        yield from self._put_checkpoint(saver, (thread, namespace, id), missing)

    def _put_checkpoint(self, saver: Any, place: tuple[Any, str, str], keys: list[tuple[Any, ...]]) -> Plan[None]:
        thread, namespace, id = place
        body, metadata, parent = saver.storage[thread][namespace][id]
        blobs = [_Blob(key[2], key[3], saver.blobs[key]) for key in keys]
        _check_kinds([body, metadata, *(blob.value for blob in blobs)])
        file = _CheckpointFile(thread, namespace, id, body, metadata, parent, blobs)
        yield from self._put(self._file(place), file)
        self._blobs.update(keys)

    def after_writes(self, saver: Any, config: Any, task: str, indexes: Iterable[int]) -> Plan[None]:
        """Keep the writes that `saver.put_writes` has just taken."""
        where = config["configurable"]
        thread, namespace, id = where["thread_id"], where.get("checkpoint_ns", ""), where["checkpoint_id"]
        held = saver.writes.get((thread, namespace, id), {})
        writes = [_Write(task, index, *held[task, index][1:]) for index in indexes if (task, index) in held]
        if not writes:
            return
        _check_kinds([write.value for write in writes])
        # A task's ordinary writes come in one call, errors and interrupts in others: the lowest index tells them apart.
        name = f"{_part(task)}.{min(write.index for write in writes)}"
        folder = f"{self._file((thread, namespace, id))}.writes"
        yield from self._put(f"{folder}/{name}", _WritesFile(thread, namespace, id, writes))

    def keep(self, saver: Any, place: tuple[Any, str, str]) -> Plan[None]:
        """Keep a checkpoint of the saver with all its channel values, so that it needs no other file; and its writes.

        `place` is its thread, namespace and id.
        """
        thread, namespace, id = place
        versions = saver.serde.loads_typed(saver.storage[thread][namespace][id][0])["channel_versions"]
        keys = [(thread, namespace, *item) for item in versions.items()]
        yield from self._put_checkpoint(saver, place, [key for key in keys if key in saver.blobs])
        for (task, index), write in saver.writes.get(place, {}).items():
            _check_kinds([write[2]])
            file = _WritesFile(thread, namespace, id, [_Write(task, index, *write[1:])])
            yield from self._put(f"{self._file(place)}.writes/{_part(task)}.{index}", file)

    def forget(self, place: tuple[Any, str, str]) -> Plan[None]:
        """Forget one checkpoint and its writes; channel values that only its file had are gone."""
        file = self._file(place)
        for path in (file, f"{file}.writes"):
            yield StorageDelete(path=path, owner=self._owner), Count
            self._seen = {name: v for name, v in self._seen.items() if name != path and not name.startswith(f"{path}/")}

    def after_delete(self, saver: Any, thread: Any) -> Plan[None]:
        """Forget a thread."""
        folder = self._folder(thread)
        yield StorageDelete(path=folder, owner=self._owner), Count
        self._seen = {path: version for path, version in self._seen.items() if not path.startswith(f"{folder}/")}
        self._blobs = {key for key in self._blobs if key[0] != thread}

    def _folder(self, thread: Any) -> str:
        return f"{self._root}/{_part(thread)}"

    def _file(self, place: tuple[Any, str, str]) -> str:
        thread, namespace, id = place
        return f"{self._folder(thread)}/{_part(namespace)}/{_part(id)}"

    def _put(self, path: str, file: _CheckpointFile | _WritesFile) -> Plan[None]:
        info: FileInfo = yield StoragePut(path=path, data=msgspec.msgpack.encode(file), owner=self._owner), FileInfo
        self._seen[path] = info.version

    def _load(self, saver: Any, data: bytes) -> None:
        file = msgspec.msgpack.decode(data, type=_CheckpointFile | _WritesFile)
        if isinstance(file, _WritesFile):
            held = saver.writes[file.thread, file.namespace, file.id]
            held.update({(w.task, w.index): (w.task, w.channel, w.value, w.path) for w in file.writes})
            return
        for blob in file.blobs:
            key = (file.thread, file.namespace, blob.channel, blob.version)
            saver.blobs[key] = blob.value
            self._blobs.add(key)
        saver.storage[file.thread][file.namespace][file.id] = (file.checkpoint, file.metadata, file.parent)


def _part(name: Any) -> str:
    """One part of a path for any thread, namespace or task; long ones are cut and told apart by a digest."""
    text = quote(name, safe="") if isinstance(name, str) else f"{type(name).__name__}:{quote(str(name), safe='')}"
    if len(text) > _LONGEST_PART:
        text = text[:_LONGEST_PART] + "~" + hashlib.sha256(text.encode()).hexdigest()[:32]
    return f"_{text}"  # never empty, never "." or ".."


def _check_kinds(values: Iterable[Typed]) -> None:
    """Pickles stay out of the kernel: loading one runs whatever whoever wrote it wants."""
    if any(kind.startswith("pickle") for kind, _ in values):
        raise Unsupported(
            "a checkpoint holds a pickled value, which the kernel does not keep",
            fix='put values into the state that msgpack can write, or use @aios.agent(memory="mediated")',
        )
