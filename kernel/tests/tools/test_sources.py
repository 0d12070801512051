"""Sources whose tools come and go, and isolation levels: what is missing is refused, never lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from aios_kernel.errors import ConfigError, NotFound, Unsupported
from aios_kernel.syscalls import ToolInvoke, ToolSpec
from aios_kernel.tools import Confine, HostedTool, Offer, ToolRegistry


def tool(name: str, run: Any = lambda: "", **more: Any) -> HostedTool:
    return HostedTool(ToolSpec(name=name), run, **more)


class Server:
    """A source that has one tool at first and offers others later."""

    def __init__(self) -> None:
        self.offer: Offer | None = None
        self.closed = False

    def tools(self) -> Sequence[HostedTool]:
        return [tool("first", lambda: "1")]

    async def start(self, offer: Offer) -> None:
        self.offer = offer

    async def close(self) -> None:
        self.closed = True


async def test_a_source_offers_its_tools_anew() -> None:
    server = Server()
    registry = ToolRegistry([tool("own")], sources={"mcp": server})
    assert [spec.name for spec in registry.specs()] == ["first", "own"]
    await registry.start()
    assert server.offer is not None
    server.offer([tool("second", lambda: "2")])
    assert [spec.name for spec in registry.specs()] == ["own", "second"]
    assert (await registry.call(ToolInvoke(name="second"))).content == "2"
    with pytest.raises(NotFound):
        await registry.call(ToolInvoke(name="first"))
    with pytest.raises(ConfigError, match=r"\"own\" is offered twice, by a plugin and \[mcp\]"):
        server.offer([tool("third"), tool("own")])
    assert [spec.name for spec in registry.specs()] == ["own", "second"], "all or nothing"
    await registry.close()
    assert server.closed


async def test_a_tool_is_confined_by_the_level_that_it_asks_for() -> None:
    made: list[str] = []

    def level() -> Confine:
        made.append("level")
        return lambda inner: HostedTool(
            inner.spec, lambda: f"confined {inner.run()}", isolation="sandbox", confined=True
        )

    tools = [tool(name, lambda: "run", isolation="sandbox") for name in "ab"]
    registry = ToolRegistry(tools, levels={"sandbox": level})
    assert made == ["level"], "made once, when it is needed"
    assert (await registry.call(ToolInvoke(name="a"))).content == "confined run"
    alone = ToolRegistry([tool("c", lambda: "by itself", isolation="container", confined=True)])
    assert (await alone.call(ToolInvoke(name="c"))).content == "by itself"


def test_a_missing_level_stops_the_start() -> None:
    def missing() -> Confine:
        raise Unsupported("this machine has no bubblewrap", fix="apt install bubblewrap")

    with pytest.raises(Unsupported, match="no bubblewrap"):
        ToolRegistry([tool("a", isolation="sandbox")], levels={"sandbox": missing})
    assert ToolRegistry([tool("a")], levels={"sandbox": missing}).specs()
    with pytest.raises(Unsupported, match='needs isolation "container"'):
        ToolRegistry([tool("a", isolation="container")], levels={"sandbox": missing})


async def test_an_untrusted_result_is_marked() -> None:
    registry = ToolRegistry([tool("web", untrusted=True), tool("own")])
    assert (await registry.call(ToolInvoke(name="web"))).untrusted
    answer = await registry.call(ToolInvoke(name="own"))
    assert not answer.untrusted
    assert b"untrusted" not in msgspec.json.encode(answer)
