"""Three replicas of one model behind one kernel; one of them is killed in the middle of the work.

    python docs/examples/replicas.py                # three `aios serve` of the demo model on this machine
    python docs/examples/replicas.py 9 6            # so many agents, and turns of each

Each agent is a program: it stays at the replica that has its KV. When that one dies, its programs move to the others,
and their open calls are answered there; nobody has to know. Started again, it is given new programs.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from openai import OpenAI

import aios_adapters as aios
from aios_kernel.client import Client, connect
from aios_kernel.syscalls import KernelInfo, KernelPs, KernelStatus, Programs, Replica

AIOS = Path(sys.executable).parent / "aios"
KEY = secrets.token_hex(16)
SETTINGS = """
model = "demo"
embedder = "hash"
vectors = "exact"
http = "127.0.0.1:{port}"
kv_tokens = 32768
[principals]
front = "{digest}"
"""
RULES = "You are a careful assistant. You answer in few words and keep to what was said before. " * 12


class Serving:
    """One `aios serve`: a process group of its own, so that it dies at once and whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        folder.mkdir()
        self.start()

    def start(self) -> None:
        """Start it, at the same address as before."""
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        (self.folder / "aios.toml").write_text(SETTINGS.format(port=self.port, digest=digest))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
        environment = clean | {"AIOS_HOME": str(self.folder / "home")}
        self._process = subprocess.Popen(
            [AIOS, "serve"], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait(self) -> str:
        """Its address, once it serves."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", said)
        if found is None:
            raise RuntimeError(f"a replica did not start: {said}")
        self.port = int(found.group(1))
        return found.group()

    def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all of it, and wait."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Watcher:
    """Looks at the kernel in front."""

    def __init__(self) -> None:
        self._connection = connect(client="replicas")
        self._client = Client(self._connection)

    def replicas(self) -> dict[str, Replica]:
        """By address."""
        status = self._client.call(KernelInfo())
        assert isinstance(status, KernelStatus)
        return {replica.url: replica for replica in status.replicas}

    def homes(self) -> dict[str, str]:
        """Where each program that runs has its KV."""
        programs = self._client.call(KernelPs(finished=False))
        assert isinstance(programs, Programs)
        return {program.agent: program.replica for program in programs.programs if program.replica}

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Work:
    """What all agents do, in step at its begin: so many turns of a conversation that gets longer."""

    def __init__(self, agents: int, turns: int) -> None:
        self.turns = turns
        self.begun = threading.Barrier(agents + 1)
        self.prompt = self.cached = 0  # tokens, of all turns but the first
        self._lock = threading.Lock()

    def converse(self, name: str) -> int:
        """One agent; gives how many of its calls were answered."""
        try:
            return self._converse(name)
        except BaseException:
            self.begun.abort()  # or the others would wait for it
            raise

    def _converse(self, name: str) -> int:
        client = OpenAI(api_key="none", max_retries=0)
        talk: list[Any] = [{"role": "system", "content": f"{name}. {RULES}"}]
        for turn in range(self.turns):
            talk.append({"role": "user", "content": f"What is {turn + 2} times {len(name)}? Say it in a sentence."})
            reply = client.chat.completions.create(model="demo", messages=talk, max_tokens=48, temperature=0)
            talk.append({"role": "assistant", "content": reply.choices[0].message.content or ""})
            if turn == 0:
                self.begun.wait()
            elif reply.usage is not None:
                self._note(reply.usage.prompt_tokens, reply.usage.prompt_tokens_details)
        return self.turns

    def _note(self, prompt: int, details: object) -> None:
        with self._lock:
            self.prompt += prompt
            self.cached += getattr(details, "cached_tokens", 0) or 0


@contextmanager
def replicas(number: int) -> Generator[dict[str, Serving], None, None]:
    """That many servers, by address."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        serving = [Serving(Path(folder) / f"replica{n}") for n in range(number)]
        try:
            yield {each.wait(): each for each in serving}
        finally:
            for each in serving:
                each.end()


def main(agents: int = 9, turns: int = 8) -> None:
    """Run the agents, kill the replica that the first one is at, and say how it went."""
    with replicas(3) as serving:
        os.environ |= {"AIOS_MODEL": "openai:demo", "AIOS_BASE_URL": ",".join(serving), "AIOS_API_KEY": KEY}
        os.environ |= {"AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
        watcher, work, names = Watcher(), Work(agents, turns), [f"agent{n}" for n in range(agents)]
        with ThreadPoolExecutor(agents) as pool:
            running = [pool.submit(aios.agent(work.converse, name=name), name) for name in names]
            with suppress(threading.BrokenBarrierError):
                work.begun.wait()
            if work.begun.broken:
                raise next(error for each in running if (error := each.exception()) is not None)
            before = watcher.homes()
            dead = busiest(watcher)
            serving[dead].end(signal.SIGKILL)
            print(f"killed {dead}, at which {sum(home == dead for home in before.values())} of {agents} agents were")
            after = moved(watcher, before, dead)
            answered = sum(each.result() for each in running)
        lost = watcher.replicas()[dead].lost_calls
        print(
            f"{answered} of {agents * turns} calls were answered, once each; {lost} of them moved while they were open"
        )
        print(f"{after} agents stayed where they were, the others went to two replicas")
        print(f"{work.cached / work.prompt:.0%} of the prompts' tokens came from the replicas' caches")
        serving[dead].start()
        serving[dead].wait()
        while not watcher.replicas()[dead].up:
            time.sleep(0.05)
        print("started again, it is taken back")
        watcher.close()


def busiest(watcher: Watcher) -> str:
    """The replica with most open calls, when there is one with any."""
    while True:
        found = max(watcher.replicas().values(), key=lambda replica: replica.open_calls)
        if found.open_calls:
            return found.url


def moved(watcher: Watcher, before: dict[str, str], dead: str) -> int:
    """How many agents stayed, once none is at the dead replica any more. To move without need is an error."""
    after = dict(before)
    while dead in after.values():
        time.sleep(0.02)
        now = watcher.homes()
        after |= now
        after = {name: home for name, home in after.items() if name in now or home != dead}  # it had ended before
    strayed = [name for name, home in after.items() if before[name] not in (dead, home)]
    if strayed:
        raise RuntimeError(f"without need moved: {', '.join(strayed)}")
    return sum(before[name] == home for name, home in after.items())


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
