"""The attacks of `probes.py` at each level. `docs/isolation.md` has the same table, which a test compares with this."""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from aios_kernel.tools.confinement import Confinement
from aios_kernel.tools.hosted import Launch
from aios_kernel.tools.isolation import places
from aios_kernel.tools.isolation.confine import alone
from aios_kernel.tools.isolation.level import Job, Runner

PROBES = Path(__file__).with_name("probes.py").resolve()
DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "isolation.md"
LEVELS = ("trusted", "subprocess", "sandbox", "container")
LIBC = ctypes.CDLL(None, use_errno=True)
WAIT = "import signal, sys; signal.signal(10, print); sys.stdin.read()"
SYSTEM_PYTHON = "/usr/bin/python3"
MARKER = "marker-" + secrets.token_hex(8)
SMALL = Confinement(
    read=[str(PROBES), os.path.realpath(sys.base_prefix)], memory_mb=1024, processes=16, disk_mb=32, output_kb=64
)


class Attack(NamedTuple):
    """A probe, what it is in words, its arguments (names of `Target`'s parts or numbers), and where it gets through."""

    probe: str
    words: str
    arguments: dict[str, Any]
    through: tuple[str, ...] = ()
    needs_root: bool = False
    """Unconfined it succeeds for root only, so that for others there is nothing to compare with."""


ATTACKS = [
    Attack("read_secret", "read a secret file", {"path": "secret", "marker": "marker"}),
    Attack("list_folder", "list a folder outside", {"path": "folder", "name": "secret_name"}),
    Attack("stat_file", "learn that a file exists, its size and times", {"path": "secret"}, ("subprocess",)),
    Attack("write_outside", "write outside its folder", {"path": "unwritten"}),
    Attack("change_mode", "change a file's mode outside", {"path": "secret"}),
    Attack("change_times", "change a file's times outside", {"path": "secret"}),
    Attack("set_attribute", "set a file's attributes outside", {"path": "secret"}),
    Attack("watch", "watch a folder outside (inotify)", {"path": "folder"}),
    Attack("swapped_link", "swap a symbolic link between check and use", {"path": "secret", "marker": "marker"}),
    Attack("by_handle", "open a file by its handle", {"path": "secret", "marker": "marker"}, needs_root=True),
    Attack("environment", "read a secret of the kernel's environment", {"name": "variable", "marker": "marker"}),
    Attack("descriptors", "use descriptors that the kernel has open", {"marker": "marker"}),
    Attack("tcp", "reach a TCP server on this machine", {"port": "tcp_port", "marker": "marker"}),
    Attack("udp", "reach a UDP server on this machine", {"port": "udp_port", "marker": "marker"}),
    Attack("unix_socket", "reach the kernel's socket", {"address": "socket_path", "marker": "marker"}),
    Attack("unix_socket", "reach an abstract unix socket", {"address": "abstract", "marker": "marker"}),
    Attack("datagram_pair", "turn a socket pair to another address", {"address": "datagram_path", "marker": "marker"}),
    Attack("netlink", "open a netlink socket", {}),
    Attack("io_uring", "go around the filter by io_uring", {}),
    Attack("signal_process", "signal the kernel's processes", {"pid": "pid"}),
    Attack("slow_down", "slow other processes down", {"pid": "pid"}),
    Attack("limit_process", "limit other processes", {"pid": "pid"}),
    Attack("count_processes", "learn which process numbers are taken", {"pid": "pid"}, ("subprocess",)),
    Attack("host_processes", "see other processes' command lines in /proc", {"pid": "pid", "marker": "marker"}),
    Attack(
        "root_of_process",
        "read files by /proc/PID/root",
        {"pid": "pid", "path": "secret", "marker": "marker"},
    ),
    Attack("environment_of_process", "read /proc/PID/environ", {"pid": "pid", "marker": "marker"}),
    Attack("trace_process", "trace another process (ptrace)", {"pid": "pid"}),
    Attack("trace_child", "trace a child", {}),
    Attack("shared_memory", "read other processes' System V shared memory", {"key": "key", "marker": "marker"}),
    Attack("memory", "take 2 GiB of memory, shared", {"mebibytes": 2048}),
    Attack("private_memory", "take 2 GiB of memory, private", {"mebibytes": 2048}),
    Attack("user_namespace", "make a user namespace", {}),
    Attack("user_namespace_by_clone", "make a user namespace by clone", {}),
    Attack("mounts", "mount a file system", {}, needs_root=True),
    Attack("terminal", "type into a terminal (TIOCSTI)", {}, needs_root=True),
    Attack("processes", "start 100 processes", {"number": 100}),
    Attack("threads", "start 100 threads", {"number": 100}),
    Attack("big_file", "write one file beyond the disk limit", {"mebibytes": 48}),
    Attack("many_files", "write many files beyond the disk limit", {"mebibytes": 96}, ("subprocess",)),
]


class Target:
    """What is to be protected: files, servers and a process, as the kernel would have them."""

    def __init__(self, folder: Path, beside: str) -> None:
        self.marker = MARKER
        self.beside = beside
        self.variable = "AIOS_TEST_SECRET"
        self.folder = str(folder)
        self.secret_name = "secret.txt"
        self.secret = str(folder / self.secret_name)
        self.unwritten = str(folder / "unwritten")
        Path(self.secret).write_text(MARKER)
        self._servers: list[socket.socket] = []
        self.socket_path = str(folder / "kernel.sock")
        self.datagram_path = str(folder / "datagrams.sock")
        self.abstract = f"@{MARKER}-{secrets.token_hex(4)}"
        self.key, self._segment = _shared_memory()
        self.tcp_port = self._listen(socket.AF_INET, ("127.0.0.1", 0))[1]
        self._listen(socket.AF_UNIX, self.socket_path)
        self._listen(socket.AF_UNIX, self.abstract.replace("@", "\0"))
        self.udp_port = self._datagrams(socket.AF_INET, ("127.0.0.1", 0))[1]
        self._datagrams(socket.AF_UNIX, self.datagram_path)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                "import signal, sys; signal.signal(10, print); print(flush=True); sys.stdin.read()",
                MARKER,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {self.variable: MARKER},
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # before that a signal would end it
        self.pid = self._process.pid

    def clean(self) -> None:
        """Take back what the unconfined run has done."""
        Path(self.unwritten).unlink(missing_ok=True)
        os.chmod(self.secret, 0o644)

    def check(self) -> None:
        """Nothing was done to the files, whatever the probe says."""
        assert not Path(self.unwritten).exists()
        assert os.stat(self.secret).st_mode & 0o777 == 0o644
        assert self._process.poll() is None

    def close(self) -> None:
        self._process.communicate()
        LIBC.shmctl(self._segment, 0, None)
        for server in self._servers:
            server.shutdown(socket.SHUT_RDWR) if server.type == socket.SOCK_STREAM else None
            server.close()

    def _listen(self, family: int, address: Any) -> Any:
        server = socket.socket(family)
        server.bind(address)
        server.listen()
        self._servers.append(server)
        threading.Thread(target=_answer, args=(server,), daemon=True).start()
        return server.getsockname()

    def _datagrams(self, family: int, address: Any) -> Any:
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind(address)
        server.settimeout(0.05)
        self._servers.append(server)
        threading.Thread(target=_answer_datagrams, args=(server,), daemon=True).start()
        return server.getsockname()


def _shared_memory() -> tuple[int, int]:
    """Key and id of a segment with the marker in it."""
    key = secrets.randbits(30) + 1
    segment = LIBC.shmget(key, 4096, 0o1666)
    LIBC.shmat.restype = ctypes.c_void_p
    address = LIBC.shmat(segment, None, 0)
    ctypes.memmove(address, MARKER.encode(), len(MARKER))
    LIBC.shmdt(ctypes.c_void_p(address))
    return key, segment


def _answer(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client:
            if client.recv(100).decode() == MARKER:
                client.sendall(b"seen")


def _answer_datagrams(server: socket.socket) -> None:
    while server.fileno() >= 0:
        try:
            _, address = server.recvfrom(100)
            if address:
                server.sendto(b"seen", address)
        except TimeoutError:
            continue
        except OSError:
            return


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    with (
        tempfile.TemporaryDirectory(prefix="aios-target-", dir="/var/tmp") as folder,
        tempfile.TemporaryDirectory(prefix="aios-probes-", dir="/var/tmp") as beside,
    ):
        for each in (folder, beside):
            os.chmod(each, 0o755)  # so that nothing but the isolation stands in the way
        target = Target(Path(folder), beside)
        monkeypatch.setenv(target.variable, MARKER)
        yield target
        target.close()


def command(attack: Attack, target: Target) -> list[str]:
    arguments = {
        name: getattr(target, value) if isinstance(value, str) else value for name, value in attack.arguments.items()
    }
    return [places.interpreter(), "-I", "-S", str(PROBES), attack.probe, json.dumps(arguments)]


def unconfined(attack: Attack, target: Target, inherited: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command(attack, target),
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=[inherited],
            env=os.environ | {"TMPDIR": folder},
            check=False,
        )
    return done.stdout.strip() + done.stderr


async def at_level(runner: Runner, attack: Attack, target: Target) -> str:
    outcome = await runner.run(Job(argv=command(attack, target), confinement=SMALL, time_s=60))
    return outcome.stdout.decode().strip() + outcome.stderr.decode()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.words.replace(" ", "-"))
async def test_an_attack_gets_as_far_as_the_document_says(confined: Runner, attack: Attack, target: Target) -> None:
    if attack.needs_root and os.geteuid() != 0:
        pytest.skip("without isolation only root gets through")
    inherited = os.open(target.secret, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        assert unconfined(attack, target, inherited) == "GOT", "the probe proves nothing: it fails without isolation"
        target.clean()
        found = await at_level(confined, attack, target)
    finally:
        os.close(inherited)
    if confined.level.name in attack.through:
        assert found == "GOT"
    else:
        assert re.fullmatch("BLOCKED: .+", found), found
    target.check()


def test_the_document_promises_what_is_tested() -> None:
    lines = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", DOCUMENT.read_text(), re.MULTILINE)
    said = {words: levels for words, *levels in lines}
    for attack in ATTACKS:
        levels = ["gets through" if level in attack.through else "stopped" for level in LEVELS[1:]]
        assert said.get(attack.words) == levels, attack.words
    promised = {words for words, levels in said.items() if set(levels) <= {"stopped", "gets through"}}
    assert promised == {attack.words for attack in ATTACKS}


def open_copy(target: Target) -> str:
    """The probes where everybody can read them, wherever this checkout lies."""
    copy = shutil.copy(PROBES, target.beside)
    os.chmod(copy, 0o644)
    return copy


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.words.replace(" ", "-"))
def test_a_long_job_is_confined_the_same(confined: Runner, attack: Attack, target: Target, tmp_path: Path) -> None:
    """Which confines itself, without the fork server (`Confiner` gives such a `launch`)."""
    if not confined.level.outlives:
        pytest.skip("nothing of this level outlives the kernel")
    if attack.needs_root and os.geteuid() != 0:
        pytest.skip("without isolation only root gets through")
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip("the system has no Python of its own")  # others may be out of reach for who is not root
    probes = open_copy(target)
    argv = [SYSTEM_PYTHON, "-I", "-S", probes, *command(attack, target)[4:]]
    confinement = msgspec.structs.replace(SMALL, read=[probes])
    launch = alone(confined, "t", lambda _: Launch(argv=argv), confinement)({})
    inherited = os.open(target.secret, os.O_RDONLY)
    folder = tmp_path / "work"
    folder.mkdir()
    target.clean()
    try:
        done = subprocess.run(
            launch.argv,
            env=launch.env,
            cwd=folder,
            pass_fds=[inherited],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(inherited)
    found = done.stdout.strip() + done.stderr
    assert found == "GOT" if confined.level.name in attack.through else re.fullmatch("BLOCKED: .+", found), found
    target.check()
