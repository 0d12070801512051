"""Level 2: bubblewrap. A file system with nothing in it but what is stated, no network, no other process in sight."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import tempfile
from typing import ClassVar, final

from aios_kernel.errors import Unsupported
from aios_kernel.tools.hosted import Isolation
from aios_kernel.tools.isolation import seccomp
from aios_kernel.tools.isolation.forkserver import FOLDER
from aios_kernel.tools.isolation.launcher.network import PORT
from aios_kernel.tools.isolation.level import Job, environment, limits
from aios_kernel.tools.isolation.places import (
    FILES,
    FOLDERS,
    LOCALTIME,
    SYSTEM,
    interpreter,
    is_of_system,
    of_python,
    outermost,
)
from aios_kernel.tools.isolation.process import Request

_FILTER, _FIRST_FILE = 4, 5  # descriptors, as the launcher numbers them
_SHM_SHARE = 4
_FUNCTION = (
    "import sys; sys.path.insert(0, {folder!r}); from launcher.function import main; del sys.path[0]; sys.exit(main())"
)


@final
class Sandbox:
    """Namespaces for all but time, no capabilities, no further namespaces, a memory file system of limited size."""

    name: ClassVar[Isolation] = "sandbox"
    networks: ClassVar[bool] = True
    outlives: ClassVar[bool] = True

    def check(self) -> None:
        """Raise Unsupported without bubblewrap, prlimit or seccomp."""
        _program("bwrap", "apt install bubblewrap")
        _program("prlimit", "apt install util-linux")
        self.program(None)

    def request(self, job: Job, uid: int | None) -> Request:
        """The command line of bubblewrap."""
        confinement = job.confinement
        own = [*FOLDERS[: 2 if confinement.network else 1], *confinement.read, *([job.cwd] if job.cwd else [])]
        if not job.argv:
            own += [*of_python(), FOLDER]
        listen = bool(confinement.network)
        argv = [
            *_bubblewrap(listen),
            *_memory_files(confinement.disk_mb << 20),
            *_system(),
            *_binds(own),
            *("--remount-ro", "/dev", "--remount-ro", "/"),
            *("--chdir", job.cwd or "/tmp", "--seccomp", str(_FILTER), "--"),
            *(_program("prlimit", ""), f"--nproc={confinement.processes}:{confinement.processes}", "--"),
            *(job.argv or function_argv()),
        ]
        staged = _hidden(argv) if uid is not None else {}
        proxy = f"http://127.0.0.1:{PORT}"
        names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY") if listen else ()
        return Request(
            argv=argv,
            env=dict.fromkeys(names, proxy) | environment(job) | {"HOME": "/tmp", "TMPDIR": "/tmp"},
            cwd="/",
            uid=uid,
            files=_files(),
            staged=staged,
            folder=tempfile.gettempdir() if staged else "",
            limits=limits(confinement),
            pass_filter=True,
            listen=listen,
            time_s=job.time_s,
        )

    def program(self, uid: int | None, *, alone: bool = False) -> bytes:
        """The filter with sockets: those of a network of its own."""
        return seccomp.isolated()


def _bubblewrap(listen: bool) -> list[str]:
    return [
        _program("bwrap", ""),
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"),
        *([] if listen else ["--unshare-net"]),  # the launcher has made it, with the proxy's socket in it
        *("--disable-userns", "--die-with-parent", "--new-session", "--hostname", "sandbox"),
    ]


def _memory_files(disk: int) -> list[str]:
    shm = disk // _SHM_SHARE
    return [
        *("--size", str(disk - shm), "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"),
        *("--size", str(shm), "--tmpfs", "/dev/shm"),
    ]


def _system() -> list[str]:
    """Options that show the system. Mounts are what a sandbox costs: links and copies of small files cost less."""
    options: list[str] = []
    for place in (*SYSTEM, LOCALTIME):
        if os.path.islink(place):
            options += ["--symlink", os.readlink(place), place]
        elif os.path.exists(place):
            options += ["--ro-bind", place, place]
    for number, place in enumerate(_files()):
        options += ["--perms", "0444", "--file", str(_FIRST_FILE + number), place]
    return options


def _files() -> list[str]:
    return [place for place in FILES if os.path.exists(place)]


def _binds(own: list[str]) -> list[str]:
    """Options that show the tool's own places."""
    options: list[str] = []
    for place in outermost(own):
        if not is_of_system(place):
            options += ["--ro-bind", place, place]
    for place in own:
        if os.path.realpath(place) != place and not is_of_system(place):
            options += ["--symlink", os.path.realpath(place), place]
    return options


def _hidden(argv: list[str]) -> dict[str, str]:
    """The sources of bind mounts that only root can reach, by their position."""
    positions = [number + 1 for number, word in enumerate(argv[: argv.index("--")]) if word == "--ro-bind"]
    return {str(number): argv[number] for number in positions if not _is_open(argv[number])}


@functools.lru_cache(maxsize=1024)
def _is_open(place: str) -> bool:
    parents = [os.path.dirname(place)]
    while parents[-1] != "/":
        parents.append(os.path.dirname(parents[-1]))
    return all(os.stat(parent).st_mode & stat.S_IXOTH for parent in parents)


def function_argv() -> list[str]:
    """The command that calls a function within an isolation level (`launcher.function`)."""
    return [interpreter(), "-I", "-S", "-c", _FUNCTION.format(folder=FOLDER)]


def _program(name: str, fix: str) -> str:
    return system_program(name, "sandbox", fix)


@functools.cache
def system_program(name: str, level: str, fix: str) -> str:
    """The path of a program that a level needs. Raises Unsupported."""
    found = shutil.which(name, path=os.defpath + ":/usr/local/bin:" + os.environ.get("PATH", ""))
    if found is None:
        raise Unsupported(f"level {level} needs {name}, which is not installed", fix=fix)
    return found
