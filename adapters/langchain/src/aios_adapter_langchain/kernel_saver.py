"""`KernelCheckpointSaver`: a LangGraph checkpointer that the kernel keeps, for those who choose it openly."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import SerializerProtocol

from aios_adapter_langchain.identity import FRAMEWORK
from aios_adapter_langchain.places import checked_name
from aios_adapter_langchain.plans import Plan, arun, run
from aios_adapter_langchain.saver_copy import SaverCopy
from aios_adapter_langchain.saver_upkeep import copied, pruned, without_runs
from aios_adapters import Scope
from aios_adapters._ambient import ambient
from aios_adapters._scope import suspended
from aios_kernel.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class _Room:
    """One agent's checkpoints: what this process has seen of them, and how they lie in the kernel."""

    saver: InMemorySaver
    copy: SaverCopy


class KernelCheckpointSaver(BaseCheckpointSaver[str]):
    """Checkpoints as files of the agent that is on; outside of every agent, of the agent `agent`.

    They are durable when a step is over, and there in the next process: `thread_id` is all that is needed.

    Args:
        name: tells several savers of one agent apart.
        agent: whose checkpoints they are outside of every agent.
        serde: LangGraph's serializer; pickled values are refused.
    """

    __aios_direct__ = True

    def __init__(
        self, name: str = "default", *, agent: str = "langgraph", serde: SerializerProtocol | None = None
    ) -> None:
        super().__init__(serde=serde)
        self._name = checked_name(name)
        self._agent = agent
        self._rooms: dict[tuple[Any, str], _Room] = {}

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See LangGraph."""
        return run(scope := self._scope(), self._got(self._room(scope), config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See LangGraph."""
        return await arun(scope := self._scope(), self._got(self._room(scope), config))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """See LangGraph."""
        return run(scope := self._scope(), self._history(self._room(scope), config, channels))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """See LangGraph."""
        return await arun(scope := self._scope(), self._history(self._room(scope), config, channels))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """See LangGraph."""
        options = {"filter": filter, "before": before, "limit": limit}
        yield from run(scope := self._scope(), self._listed(self._room(scope), config, options))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """See LangGraph."""
        options = {"filter": filter, "before": before, "limit": limit}
        for item in await arun(scope := self._scope(), self._listed(self._room(scope), config, options)):
            yield item

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See LangGraph."""
        scope = self._scope()
        return run(scope, self._put(self._room(scope), config, checkpoint, metadata, new_versions))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See LangGraph."""
        scope = self._scope()
        return await arun(scope, self._put(self._room(scope), config, checkpoint, metadata, new_versions))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See LangGraph."""
        scope = self._scope()
        run(scope, self._put_writes(self._room(scope), config, writes, task_id, task_path))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See LangGraph."""
        scope = self._scope()
        await arun(scope, self._put_writes(self._room(scope), config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """See LangGraph."""
        run(scope := self._scope(), self._deleted(self._room(scope), thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """See LangGraph."""
        await arun(scope := self._scope(), self._deleted(self._room(scope), thread_id))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See LangGraph."""
        run(scope := self._scope(), self._copied(self._room(scope), source_thread_id, target_thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See LangGraph."""
        await arun(scope := self._scope(), self._copied(self._room(scope), source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See LangGraph; what a delta channel of the latest checkpoint is made of stays too."""
        run(scope := self._scope(), self._pruned(self._room(scope), thread_ids, strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See LangGraph; what a delta channel of the latest checkpoint is made of stays too."""
        await arun(scope := self._scope(), self._pruned(self._room(scope), thread_ids, strategy))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See LangGraph."""
        run(scope := self._scope(), self._without_runs(self._room(scope), run_ids))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See LangGraph."""
        await arun(scope := self._scope(), self._without_runs(self._room(scope), run_ids))

    def get_next_version(self, current: str | None, channel: None) -> str:
        """See LangGraph."""
        return InMemorySaver().get_next_version(current, channel)

    def _scope(self) -> Scope:
        return ambient(self._agent, FRAMEWORK)

    # --- plans ------------------------------------------------------------------------------------------------------

    def _room(self, scope: Scope) -> _Room:
        """The agent's room, its saver with this object's serializer (LangGraph clones savers to give them another)."""
        key = (scope.link, scope.agent)
        room = self._rooms.get(key)
        if room is None:
            root = f"langgraph/savers/{self._name}"
            room = self._rooms.setdefault(key, _Room(InMemorySaver(), SaverCopy(scope.agent, root=root)))
        saver = copy.copy(room.saver)
        saver.serde = self.serde
        return _Room(saver, room.copy)

    def _got(self, room: _Room, config: Any) -> Plan[CheckpointTuple | None]:
        yield from room.copy.before_read(room.saver, config)
        with suspended():
            return room.saver.get_tuple(config)

    def _history(self, room: _Room, config: Any, channels: Sequence[str]) -> Plan[Mapping[str, DeltaChannelHistory]]:
        yield from room.copy.before_read(room.saver, config)
        with suspended():
            return room.saver.get_delta_channel_history(config=config, channels=channels)

    def _listed(self, room: _Room, config: Any, options: dict[str, Any]) -> Plan[Sequence[CheckpointTuple]]:
        yield from room.copy.before_read(room.saver, config)
        with suspended():
            return [*room.saver.list(config, **options)]

    def _put(self, room: _Room, config: Any, checkpoint: Any, metadata: Any, versions: Any) -> Plan[RunnableConfig]:
        with suspended():
            saved = room.saver.put(config, checkpoint, metadata, versions)
        yield from room.copy.after_put(room.saver, saved, checkpoint)
        return saved

    def _put_writes(
        self, room: _Room, config: Any, writes: Sequence[tuple[str, Any]], task: str, path: str
    ) -> Plan[None]:
        with suspended():
            room.saver.put_writes(config, writes, task, path)
        indexes = [WRITES_IDX_MAP.get(channel, index) for index, (channel, _) in enumerate(writes)]
        yield from room.copy.after_writes(room.saver, config, task, indexes)

    def _deleted(self, room: _Room, thread: str) -> Plan[None]:
        with suspended():
            room.saver.delete_thread(thread)
        yield from room.copy.after_delete(room.saver, thread)

    def _copied(self, room: _Room, source: str, target: str) -> Plan[None]:
        yield from room.copy.before_read(room.saver, {"configurable": {"thread_id": source}})
        yield from copied(room.copy, room.saver, source, target)

    def _pruned(self, room: _Room, threads: Sequence[str], strategy: str) -> Plan[None]:
        if strategy not in ("keep_latest", "delete"):
            _refuse_strategy(strategy)
        for thread in threads:
            if strategy == "delete":
                yield from self._deleted(room, thread)
                continue
            yield from room.copy.before_read(room.saver, {"configurable": {"thread_id": thread}})
            yield from pruned(room.copy, room.saver, thread)

    def _without_runs(self, room: _Room, runs: Sequence[str]) -> Plan[None]:
        yield from room.copy.before_read(room.saver, None)
        yield from without_runs(room.copy, room.saver, frozenset(runs))


def _refuse_strategy(strategy: str) -> NoReturn:
    raise InvalidRequest(f"there is no strategy {strategy!r} of pruning", fix="choose keep_latest or delete")
