"""A real kernel is killed, at random and at every point between an intent and its result; effects are counted outside.

`SOAK_KILLS` says how often (`make soak-tools`: 1,000).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import select
import subprocess
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

from aios_kernel.client import AsyncClient, Connection, connect, kernel_command, kernel_input
from aios_kernel.config import Config
from aios_kernel.errors import EffectUnknown, KernelUnavailable
from aios_kernel.syscalls import AgentSpawn, ToolInvoke, ToolOutput

OUTSIDE = Path(__file__).parent / "outside"
KILLS = int(os.environ.get("SOAK_KILLS", "100"))
RULES = ("once", "keyed", "queryable")
POINTS = (
    "before the intent", "after the intent", "before the effect", "after the effect", "before the result",
    "after the result",
)  # fmt: skip
TOOLS = """
[python.once]
function = "service:once"

[python.keyed]
function = "service:keyed"
effects = "keyed"

[python.queryable]
function = "service:queryable"
effects = "queryable"
status = "service:status"
"""


class Mortal:
    """One life of the kernel of a data directory."""

    def __init__(self, home: Path, kill_at: str) -> None:
        self.config = Config(home=str(home), model="fake", embedder="hash", vectors="exact")
        for _ in range(3):  # an interpreter may hang before it is up: clients start another one then, as here
            if self._started(home, kill_at):
                return
            self.kill()
        raise AssertionError("no kernel has come up")

    def _started(self, home: Path, kill_at: str) -> bool:
        ours, theirs = os.pipe()
        command = [*kernel_command(self.config, forever=True), "--report-fd", str(theirs)]
        command[1:3] = [str(OUTSIDE / "mortal_kernel.py")]  # in the place of `-m aios_kernel.server`
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs,),
            env=os.environ | {"EFFECTS": str(home / "effects"), "KILL_AT": kill_at},
        )
        os.close(theirs)
        assert self.process.stdin is not None
        with self.process.stdin:
            self.process.stdin.write(kernel_input(self.config))
        with os.fdopen(ours, "rb") as reports:
            up, _, _ = select.select([reports], [], [], 60)
            if up:  # ready, or killed by what it found at its start
                assert reports.read() in (b"ready", b"")
        return bool(up)

    def connect(self) -> Connection:
        return connect(self.config, client="killer", start=False)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)


@pytest.fixture
def lives(tmp_path: Path) -> Generator[list[Mortal], None, None]:
    (tmp_path / "tools.toml").write_text(TOOLS)
    made: list[Mortal] = []
    yield made
    for life in made:
        life.kill()


class Agent:
    """Makes calls, and repeats those whose end it has not heard, under the same key."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.open: dict[str, ToolInvoke] = {}
        self.ended: dict[str, str] = {}

    def more(self, count: int) -> None:
        """Begin new calls."""
        for _ in range(count):
            number = next(self.numbers)
            name = f"c{number}"
            rule = RULES[number % len(RULES)]
            self.open[name] = ToolInvoke(rule, f'{{"call": "{name}"}}', timeout_s=60.0, key=f"key-{name}")

    async def live(self, kernel: Mortal) -> None:
        """Make all open calls at once, until they have ended or the kernel has."""
        try:
            connection = await asyncio.to_thread(kernel.connect)
        except KernelUnavailable:
            return  # it died over what an earlier one had left
        try:
            client = AsyncClient(connection)
            await client.call(AgentSpawn(program=f"p{next(self.numbers)}", agent="bot"))
            await asyncio.gather(*(self._one(client, name) for name in list(self.open)))
        except KernelUnavailable:
            return
        finally:
            connection.close()

    async def _one(self, client: AsyncClient, name: str) -> None:
        try:
            result = await client.call(self.open[name])
        except KernelUnavailable:
            return
        except EffectUnknown:
            self.ended[name] = "unknown"
        else:
            assert isinstance(result, ToolOutput)
            assert result.content == f"done {name}"
            self.ended[name] = "done"
        del self.open[name]


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * KILLS)
async def test_no_effect_happens_twice_however_the_kernel_dies(
    tmp_path: Path, lives: list[Mortal], capsys: pytest.CaptureFixture[str]
) -> None:
    draw, agent, deaths = random.Random(7), Agent(), Counter[str]()
    for number in range(KILLS):
        point = (*POINTS, "random")[number % (len(POINTS) + 1)]
        lives[:] = [Mortal(tmp_path, "" if point == "random" else f"{point}:{draw.randint(1, 10)}")]
        agent.more(6)
        work = asyncio.ensure_future(agent.live(lives[0]))
        if point == "random":
            await asyncio.sleep(draw.uniform(0, draw.choice([0.05, 0.5])))
        else:
            await asyncio.wait([work], timeout=20)
        died = lives[0].process.poll()
        await asyncio.to_thread(lives[0].kill)
        await asyncio.wait_for(work, 20)
        deaths[point if died is not None or point == "random" else "had ended all calls"] += 1
    lives[:] = [Mortal(tmp_path, "")]
    await asyncio.wait_for(agent.live(lives[0]), 60)
    assert not agent.open
    report = _counted(tmp_path / "effects", agent.ended)
    with capsys.disabled():
        print(f"\n{KILLS} kills: {report}; {dict(deaths)}")
    assert report["duplicates"] == report["lost"] == 0
    assert report["done"] >= KILLS
    assert all(deaths[point] for point in POINTS) or len(POINTS) > KILLS


def _counted(effects: Path, ended: dict[str, str]) -> Counter[str]:
    """What the file of effects says of the calls; a call that has ended well has had its effect once."""
    seen = Counter(line.split()[1] for line in effects.read_text().splitlines())
    report = Counter(calls=len(ended), effects=seen.total(), done=0, unknown=0, duplicates=0, lost=0)
    for name, end in ended.items():
        rule = RULES[int(name[1:]) % len(RULES)]
        report[end] += 1
        report["duplicates"] += seen[name] > 1
        report["lost"] += seen[name] == 0 and end == "done"
        assert end == "done" or rule == "once", "keyed and queryable calls always come to their end"
    return report


def test_the_service_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge would see a duplicate and a loss."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("EFFECTS", str(tmp_path / "effects"))
    import service

    for _ in range(2):
        service.once("c0")
        service.keyed("c1", "k")
    assert service.status("k").result == "done c1"
    assert service.status("other").state == "not_done"
    report = _counted(tmp_path / "effects", {"c0": "done", "c1": "done", "c2": "done"})
    assert (report["duplicates"], report["lost"], report["effects"]) == (1, 1, 3)
