"""LangChain's vector stores. `InMemoryVectorStore`: kept by the kernel. Others stay where they are, each access seen.

What a store calls on the way (its embedder, other methods of its own) runs inside the agent's scope, so that
`OpenAIEmbeddings` is served by the kernel; a store's calls on itself belong to the access that they are a part of.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from langchain_core.vectorstores.base import VectorStore

from aios_adapter_langchain.identity import caller
from aios_adapter_langchain.places import Spaces, place_of
from aios_adapter_langchain.plans import Plan, arun, run
from aios_adapters import Scope
from aios_adapters.patching import Patcher, Wrapper
from aios_kernel.syscalls import MemoryAdd, MemorySearch, Note, Notes

if TYPE_CHECKING:
    from aios_adapter_langchain.vector_copy import Entries, VectorCopy

_NATIVE = "langchain_core.vectorstores.in_memory"
_READS = (
    "get_by_ids", "similarity_search", "similarity_search_with_score", "similarity_search_by_vector",
    "similarity_search_with_relevance_scores", "max_marginal_relevance_search",
    "max_marginal_relevance_search_by_vector",
)  # fmt: skip
_WRITES = ("add_texts", "add_documents", "delete", "from_texts")
_FURTHER_READS = (
    "similarity_search_with_score_by_vector", "similarity_search_by_vector_with_relevance_scores",
    "max_marginal_relevance_search_with_score_by_vector", "dump", "save_local",
)  # fmt: skip
_FURTHER_WRITES = ("add_embeddings", "from_embeddings", "update_document", "update_documents", "reset_collection")
"""What some classes have beyond the base class: `InMemoryVectorStore`, FAISS, Chroma and those shaped like them."""
Original = Callable[..., Any]

_passing: ContextVar[Any] = ContextVar("aios_langchain_vectors", default=None)
"""The store whose access has passed the kernel."""


def install(patcher: Patcher) -> None:
    """Hook the accessors of every vector store, sync and async."""
    hooks = VectorHooks()
    patcher.leaves(VectorStore, hooks.wrappers(_READS, _WRITES), also=hooks.wrappers(_FURTHER_READS, _FURTHER_WRITES))


class _Book(Protocol):
    """What the kernel is asked around an access."""

    def before(self, writes: bool) -> Plan[None]: ...
    def after(self, writes: bool) -> Plan[None]: ...


class _Elsewhere:
    """A store whose contents stay where they are: each access is one syscall, so allowed, counted and audited."""

    def __init__(self, agent: str, kind: type) -> None:
        self._kind = kind.__name__
        self._space = f"agent/{agent}/mediated/{self._kind}"

    def before(self, writes: bool) -> Plan[None]:
        if writes:  # always the same note: what counts is that the access is allowed and recorded
            yield MemoryAdd(self._kind, self._space, id="last-write", embed=False), Note
        else:
            yield MemorySearch(namespace=self._space, k=1), Notes

    def after(self, writes: bool) -> Plan[None]:
        yield from ()


class _Kept:
    """A store that is the working copy of what the kernel holds."""

    def __init__(self, copy: VectorCopy, entries: Entries) -> None:
        self._copy, self._entries = copy, entries

    def before(self, writes: bool) -> Plan[None]:
        return self._copy.pull(self._entries, fresh=not writes)

    def after(self, writes: bool) -> Plan[None]:
        if writes:
            yield from self._copy.push(self._entries)


class VectorHooks:
    """The wrappers; they remember which store is which space of its agent.

    Documents belong to the decorated agent, whatever agents of LangChain's run inside, so that these can share a store.
    """

    def __init__(self) -> None:
        self._copies: Spaces[VectorCopy] = Spaces(_copy)

    def wrappers(self, reads: tuple[str, ...], writes: tuple[str, ...]) -> dict[str, Wrapper]:
        """The wrappers of methods and of their async forms."""
        found: dict[str, Wrapper] = {}
        for name in (*reads, *writes):
            found[name], found[f"a{name}"] = self._pair(name in writes)
        return found

    def _pair(self, writes: bool) -> tuple[Wrapper, Wrapper]:
        def plain(scope: Scope, original: Original, store: Any, /, *args: Any, **kwargs: Any) -> Any:
            book = self._book(scope, original, store)
            if book is None:
                return original(store, *args, **kwargs)
            run(caller(scope), book.before(writes))
            with _during(store):
                result = original(store, *args, **kwargs)
            run(caller(scope), book.after(writes))
            return result

        async def coroutine(scope: Scope, original: Original, store: Any, /, *args: Any, **kwargs: Any) -> Any:
            book = self._book(scope, original, store)
            if book is None:
                return await original(store, *args, **kwargs)
            await arun(caller(scope), book.before(writes))
            with _during(store):
                result = await original(store, *args, **kwargs)
            await arun(caller(scope), book.after(writes))
            return result

        return plain, coroutine

    def _book(self, scope: Scope, original: Original, store: Any) -> _Book | None:
        """What an access needs; None: nothing, because it is a part of another, or memory is off. A class method's
        `store` is the class: what it builds is kept by its own first write.
        """
        kind = store if isinstance(store, type) else type(store)
        passing = _passing.get()
        if passing is store or passing is kind:
            return None
        native = sys.modules.get(_NATIVE)
        in_process = native is not None and issubclass(kind, native.InMemoryVectorStore)
        place = place_of(scope, original, in_process, _NATIVE)
        if place == "mediated":
            return _Elsewhere(scope.agent, kind)
        if place == "off" or store is kind:
            return None
        return _Kept(self._copies.copy_of(scope, store, store.store), store.store)


@contextlib.contextmanager
def _during(store: Any) -> Generator[None]:
    token = _passing.set(store)
    try:
        yield
    finally:
        _passing.reset(token)


def _copy(agent: str, number: int) -> VectorCopy:
    from aios_adapter_langchain.vector_copy import VectorCopy  # needs LangGraph, which the other stores do not

    return VectorCopy(agent, number)
