"""`KernelByteStore`: a LangChain key-value store of bytes in the kernel's storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from urllib.parse import quote, unquote

from langchain_core.stores import ByteStore

from aios_adapter_langchain.identity import FRAMEWORK
from aios_adapter_langchain.plans import Plan, arun, run
from aios_adapters import Scope
from aios_adapters._ambient import ambient
from aios_kernel.errors import NotFound
from aios_kernel.syscalls import Count, FileData, FileInfo, Files, StorageDelete, StorageGet, StorageList, StoragePut

_CHUNK = 200
"""Characters of a key in one part of its path."""


class KernelByteStore(ByteStore):
    """Versioned files of the agent that is on; outside of every agent, of the agent `agent`.

    Args:
        name: tells several stores of one agent apart.
        agent: whose files they are outside of every agent.
    """

    def __init__(self, name: str = "default", *, agent: str = "langchain") -> None:
        self._folder = f"langchain/bytes/{_path_of(name)}"
        self._agent = agent

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values, None for keys that are not there."""
        return run(self._scope(), self._got(keys))

    async def amget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Like `mget`."""
        return await arun(self._scope(), self._got(keys))

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Set values, durable on return."""
        run(self._scope(), self._set(key_value_pairs))

    async def amset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Like `mset`."""
        await arun(self._scope(), self._set(key_value_pairs))

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys; those that are not there are no error."""
        run(self._scope(), self._deleted(keys))

    async def amdelete(self, keys: Sequence[str]) -> None:
        """Like `mdelete`."""
        await arun(self._scope(), self._deleted(keys))

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that begin with a prefix."""
        yield from run(self._scope(), self._keys(prefix or ""))

    async def ayield_keys(  # pyright: ignore[reportIncompatibleMethodOverride] - LangChain types the coroutine
        self, *, prefix: str | None = None
    ) -> AsyncIterator[str]:
        """Like `yield_keys`."""
        for key in await arun(self._scope(), self._keys(prefix or "")):
            yield key

    def _got(self, keys: Sequence[str]) -> Plan[list[bytes | None]]:
        values: list[bytes | None] = []
        for key in keys:
            try:
                found: FileData = yield StorageGet(path=self._path(key)), FileData
            except NotFound:
                values.append(None)
            else:
                values.append(found.data)
        return values

    def _set(self, pairs: Sequence[tuple[str, bytes]]) -> Plan[None]:
        for key, value in pairs:
            yield StoragePut(path=self._path(key), data=value), FileInfo

    def _deleted(self, keys: Sequence[str]) -> Plan[None]:
        for key in keys:
            yield StorageDelete(path=self._path(key)), Count

    def _keys(self, prefix: str) -> Plan[list[str]]:
        listed: Files = yield StorageList(prefix=f"{self._folder}/"), Files
        keys = [_key_of(file.path.removeprefix(f"{self._folder}/")) for file in listed.files]
        return [key for key in keys if key.startswith(prefix)]

    def _path(self, key: str) -> str:
        return f"{self._folder}/{_path_of(key)}"

    def _scope(self) -> Scope:
        return ambient(self._agent, FRAMEWORK)


def _path_of(key: str) -> str:
    """A path for any key: quoted, in parts of a length that the storage takes, with an end, so that none is below one.

    A part begins with `_`, the last with `.`: none is empty, `..`, or the folder of another key's path.
    """
    text = quote(key, safe="")
    *folders, name = [text[at : at + _CHUNK] for at in range(0, max(len(text), 1), _CHUNK)]
    return "".join(f"_{part}/" for part in folders) + f".{name}_"


def _key_of(path: str) -> str:
    *folders, name = path.split("/")
    return unquote("".join(part[1:] for part in folders) + name[1:-1])
