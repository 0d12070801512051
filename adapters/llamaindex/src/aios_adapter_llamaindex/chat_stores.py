"""The chat stores that live in the process: `SimpleChatStore` (under `ChatMemoryBuffer`) and the SQL store in memory
(under `Memory`). The kernel keeps what they hold; everything above them, such as token limits, is the framework's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import weakref
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.types import DEFAULT_CHAT_STORE_KEY
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.chat_store.simple_chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from pydantic_core import PydanticSerializationError
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from aios_adapter_llamaindex.history import History, Item, Row, arun, run
from aios_adapter_llamaindex.mediated import amediated, is_kept, mediated
from aios_adapter_llamaindex.shelf import Shelf, part
from aios_adapters import Scope
from aios_adapters._scope import suspended
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import Count, MemoryDelete

Access: TypeAlias = Literal["read", "add", "change"]
"""What a method does. To add a message, nobody needs to know what other processes have added meanwhile."""

_LOCK_POLL_S = 0.001


def install(patcher: Patcher) -> None:
    """Hook both stores."""
    simple, sql = SimpleStores(), SqlStores()
    for name, access in SimpleStores.methods.items():
        patcher.method(SimpleChatStore, name, simple.wrapper(access))
    for name, access in SqlStores.methods.items():
        patcher.method(SQLAlchemyChatStore, name, sql.wrapper(access))


class SimpleStores:
    """The wrappers of `SimpleChatStore`; its async methods call these in a thread."""

    methods: ClassVar[dict[str, Access]] = {
        "get_messages": "read",
        "add_message": "add",
        "set_messages": "change",
        "delete_messages": "change",
        "delete_message": "change",
        "delete_last_message": "change",
    }

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._tokens: dict[int, str] = {}

    def wrapper(self, access: Access) -> Callable[..., Any]:
        """The wrapper of one method."""

        def wrapped(scope: Scope, original: Any, store: SimpleChatStore, /, key: str, *args: Any, **kwargs: Any) -> Any:
            if not is_kept(scope):
                return mediated(scope, original, store, access != "read", key, *args, **kwargs)
            for namespace in self._shelf.litter(scope):
                scope.call(MemoryDelete(namespace=namespace), Count)
            history = self._shelf.find(scope, store, key, self._path(store, key))
            with history.lock:
                before = _items(store, key)
                rows = run(scope, history.pull(before, fetch=access != "add"))
                if rows is not None:
                    _follow(store, key, before, rows, history)
                result = original(store, key, *args, **kwargs)
                if access != "read":
                    run(scope, history.push(_items(store, key)))
            return result

        return wrapped

    def _path(self, store: SimpleChatStore, key: str) -> str:
        """A chat under its own key is found again by it; one under the default key is its store's alone."""
        if key != DEFAULT_CHAT_STORE_KEY:
            return f"chat/{part(key)}"
        if id(store) not in self._tokens:
            self._tokens[id(store)] = uuid.uuid4().hex
            weakref.finalize(store, self._tokens.pop, id(store), None).atexit = False
        return f"chat/unnamed/{self._tokens[id(store)]}"


def _items(store: SimpleChatStore, key: str) -> list[Item]:
    return [Item(_text(message)) for message in store.store.get(key, ())]


def _follow(store: SimpleChatStore, key: str, before: list[Item], rows: list[Row], history: History) -> None:
    """Make the copy equal to the rows; messages that it had already stay the same objects, in the same list."""
    copy = store.store.setdefault(key, [])
    known = {item.text: message for item, message in zip(before, copy, strict=True)}
    copy[:] = [known.get(row.item.text) or ChatMessage.model_validate_json(row.item.text) for row in rows]
    # Written back at once, the rows would differ where a message was written by another version.
    history.rows = [Row(row.id, item) for row, item in zip(rows, _items(store, key), strict=True)]


def _text(message: ChatMessage) -> str:
    try:
        return message.model_dump_json()
    except PydanticSerializationError:  # extras that are no JSON live on in this process; later ones read their text
        return msgspec.json.encode(message.model_dump(), enc_hook=str).decode()


class SqlStores:
    """The wrappers of `SQLAlchemyChatStore`: kept while its database lives in memory, else mediated."""

    methods: ClassVar[dict[str, Access]] = {
        "get_messages": "read",
        "count_messages": "read",
        "add_message": "add",
        "add_messages": "add",
        "set_messages": "change",
        "delete_message": "change",
        "delete_messages": "change",
        "delete_oldest_messages": "change",
        "archive_oldest_messages": "change",
    }

    def __init__(self) -> None:
        self._shelf = Shelf()

    def wrapper(self, access: Access) -> Callable[..., Any]:
        """The wrapper of one method."""

        async def wrapped(
            scope: Scope, original: Any, store: SQLAlchemyChatStore, /, key: str, *args: Any, **kwargs: Any
        ) -> Any:
            if not (is_kept(scope) and _in_memory(store)):
                return await amediated(scope, original, store, access != "read", key, *args, **kwargs)
            path = f"memory/{part(store.table_name)}/{part(key)}"
            history = self._shelf.find(scope, store, key, path)
            async with _locked(history):
                rows = await arun(scope, history.pull(await _sql_items(store, key), fetch=access != "add"))
                with suspended():
                    if rows is not None:
                        await _rewrite(store, key, rows)
                    result = await original(store, key, *args, **kwargs)
                if access != "read":
                    await arun(scope, history.push(await _sql_items(store, key)))
            return result

        return wrapped


def _in_memory(store: SQLAlchemyChatStore) -> bool:
    engine: AsyncEngine | None = getattr(store, "_async_engine", None)
    url = make_url(store.async_database_uri) if engine is None else engine.url
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


@contextlib.asynccontextmanager
async def _locked(history: History) -> AsyncGenerator[None]:
    # The holder may be another task of this loop or another thread with a loop of its own: no asyncio lock serves both.
    while not history.lock.acquire(blocking=False):  # noqa: ASYNC110 - see above
        await asyncio.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        history.lock.release()


async def _sql_items(store: SQLAlchemyChatStore, key: str) -> list[Item]:
    """The copy, archived messages first: they are the older ones."""
    with suspended():
        return [
            Item(message.model_dump_json(), status.value)
            for status in (MessageStatus.ARCHIVED, MessageStatus.ACTIVE)
            for message in await store.get_messages(key, status=status)
        ]


async def _rewrite(store: SQLAlchemyChatStore, key: str, rows: list[Row]) -> None:
    """Fill the copy from the rows."""
    await store.delete_messages(key)
    for status in (MessageStatus.ARCHIVED, MessageStatus.ACTIVE):
        texts = [row.item.text for row in rows if row.item.status == status.value]
        if texts:
            await store.add_messages(key, [ChatMessage.model_validate_json(text) for text in texts], status=status)
