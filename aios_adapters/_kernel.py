"""The link from this process to its kernel: one shared connection, opened at the first syscall."""

from __future__ import annotations

import os
import sys
import threading

import msgspec

from aios_adapters.plugins import PluginHost
from aios_kernel.client import AsyncClient, Client, Connection, connect
from aios_kernel.config import Config, socket_of
from aios_kernel.syscalls import LlmChat, LlmResult


class KernelLink:
    """Connects on first use, again after a fork or when the kernel went away between two calls. Thread-safe."""

    def __init__(self, config: Config, plugins: PluginHost) -> None:
        self.config = config
        self._plugins = plugins
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._connection: Connection | None = None

    def connect(self) -> Connection:
        """The live connection; starts or joins a kernel if there is none."""
        connection = self._connection
        if connection is not None and connection.alive:
            return connection
        if self._pid != os.getpid():  # a forked child must not wait for a lock that a thread of its parent held
            self._pid, self._lock = os.getpid(), threading.Lock()
            if self.config.kernel == "inprocess":  # that kernel stayed in the parent, and listens on its socket
                self.config = msgspec.structs.replace(self.config, kernel=str(socket_of(self.config)))
        with self._lock:
            if self._connection is None or not self._connection.alive:
                if self._connection is not None:
                    self._connection.close()  # in a forked child: its copy of the parent's
                self._connection = connect(self.config, client=os.path.basename(sys.argv[0] or "python"))
            return self._connection

    def connected(self) -> bool:
        """Whether a live connection is open."""
        connection = self._connection
        return connection is not None and connection.alive

    def client(self) -> Client:
        """A blocking client on the connection."""
        return Client(self.connect())

    def async_client(self) -> AsyncClient:
        """An asyncio client on the connection."""
        return AsyncClient(self.connect())

    def prepare(self, agent: str, framework: str, call: LlmChat, *, stream: bool) -> LlmChat:
        """Let plugins replace a chat, and mark it for streaming."""
        replaced = self._plugins.hook.aios_llm_request(agent=agent, framework=framework, call=call) or call
        return msgspec.structs.replace(replaced, stream=True) if stream and not replaced.stream else replaced

    def observed(self, agent: str, framework: str, call: LlmChat, result: LlmResult) -> LlmResult:
        """Show an answer to the plugins."""
        self._plugins.hook.aios_llm_result(agent=agent, framework=framework, call=call, result=result)
        return result

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


class _Links:
    """The links of this process, one a configuration."""

    def __init__(self) -> None:
        self._links: dict[bytes, KernelLink] = {}

    def get(self, config: Config, plugins: PluginHost) -> KernelLink:
        key = msgspec.json.encode(config)
        return self._links.setdefault(key, KernelLink(config, plugins))

    def close(self) -> None:
        links, self._links = self._links, {}
        for link in links.values():
            link.close()


_links = _Links()


def link_for(config: Config, plugins: PluginHost) -> KernelLink:
    """The process-wide link for a configuration."""
    return _links.get(config, plugins)


def close_links() -> None:
    """Hang up everywhere; the next syscall connects anew."""
    _links.close()
