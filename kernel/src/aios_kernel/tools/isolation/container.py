"""Level 3: a container by podman. What `sandbox` keeps, and control groups: limits on all processes of a call together.

Each call has a podman of its own: its storage lies in the folder of the call, its mounts in a mount namespace that goes
with the call. So there is nothing to clean up, however the call ends, but empty control groups.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, final

from aios_kernel.errors import ConfigError, Unsupported
from aios_kernel.tools.hosted import Isolation
from aios_kernel.tools.isolation import seccomp
from aios_kernel.tools.isolation.forkserver import FOLDER
from aios_kernel.tools.isolation.level import Job, environment
from aios_kernel.tools.isolation.places import FILES, FOLDERS, LOCALTIME, SYSTEM, is_of_system, of_python, outermost
from aios_kernel.tools.isolation.process import Request
from aios_kernel.tools.isolation.sandbox import function_argv, system_program

_RUNTIMES: Final = ("runc", "crun")
_OWN: Final = ("proc", "sys", "dev/shm", "dev/pts", "dev/mqueue", "tmp", "run", "etc")
_OWN_FILES: Final = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "run/.containerenv")
_SHM_SHARE: Final = 4
_INSIDE: Final = ("/usr/bin/env", "-u", "HOSTNAME", "/usr/bin/timeout", "--foreground", "0", "/usr/bin/prlimit")
"""In the container: without podman's variable, and as a child of its first process, which signals do not reach."""


@final
class Container:
    """A user, mount, process, network and IPC namespace and a control group of its own; no capabilities, no network."""

    name: ClassVar[Isolation] = "container"
    networks: ClassVar[bool] = False
    outlives: ClassVar[bool] = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._roots: dict[tuple[str, ...], str] = {}
        self._base = ""
        self._group = f"/aios-{os.getpid()}-{secrets.token_hex(4)}"

    def check(self) -> None:
        """Raise Unsupported without podman and an OCI runtime, or for a kernel that is not root."""
        if os.geteuid() != 0:
            raise Unsupported(
                "level container needs a kernel that is root: for others podman has no control groups everywhere",
                fix='declare isolation = "sandbox"',
            )
        system_program("podman", "container", "apt install podman runc")
        _runtime()
        for program in ("unshare", "prlimit", "env", "timeout"):
            system_program(program, "container", "apt install util-linux coreutils")
        self._profile()

    def request(self, job: Job, uid: int | None) -> Request:
        """The command line of podman, in a mount namespace of its own."""
        confinement = job.confinement
        own = [*FOLDERS[:1], *confinement.read, *([job.cwd] if job.cwd else [])]
        if not job.argv:
            own += [*of_python(), FOLDER]
        binds = [*_system(), *(place for place in outermost(own) if not is_of_system(place))]
        variables = environment(job)
        argv = [
            *(system_program("unshare", "container", ""), "--mount", "--propagation", "private", "--"),
            *_podman(_runtime()),
            *_kept(),
            *("--security-opt", f"seccomp={self._profile()}", "--cgroup-parent", self._group),
            *(
                "--uidmap",
                f"0:{uid}:1",
                "--gidmap",
                f"0:{uid}:1",
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "core=0:0",
            ),
            *("--ulimit", f"nproc={confinement.processes}:{confinement.processes}"),
            *("--pids-limit", str(confinement.processes), "--memory", f"{confinement.memory_mb}m"),
            *_memory_files(confinement.disk_mb << 20),
            *(word for name in variables for word in ("--env", name)),
            *("--env", "HOME=/tmp", "--env", "TMPDIR=/tmp"),
            *(word for place in binds for word in ("--mount", f"type=bind,src={place},dst={place},ro")),
            *("--workdir", job.cwd or "/tmp", "--rootfs", self._root(binds)),
            *_INSIDE,
            *(f"--as={confinement.memory_mb << 20}", f"--fsize={confinement.disk_mb << 20}", "--"),
            *(job.argv or function_argv()),
        ]
        return Request(argv=argv, env=variables, folder=tempfile.gettempdir(), time_s=job.time_s)

    def program(self, uid: int | None, *, alone: bool = False) -> bytes:
        """None here: podman is given a profile of its own."""
        return b""

    def _root(self, binds: Sequence[str]) -> str:
        """A root file system with nothing in it but empty places to mount on; the same for the same places."""
        key = tuple(binds)
        with self._lock:
            if key not in self._roots:
                self._roots[key] = _skeleton(Path(self._folder()) / str(len(self._roots)), binds)
            return self._roots[key]

    def _profile(self) -> str:
        path = Path(self._folder()) / "seccomp.json"
        if not path.exists():
            path.write_text(seccomp.profile())
        return str(path)

    def _folder(self) -> str:
        if not self._base:
            self._base = tempfile.mkdtemp(prefix="aios-containers-")
            os.chmod(self._base, 0o711)
            weakref.finalize(self, _clean, self._base, self._group)
        return self._base


def _runtime() -> str:
    for name in _RUNTIMES:
        with contextlib.suppress(Unsupported):
            return system_program(name, "container", "")
    raise Unsupported("level container needs an OCI runtime, runc or crun", fix="apt install runc")


def _podman(runtime: str) -> list[str]:
    """With its storage below the working directory, which is the folder of the call."""
    return [
        *(system_program("podman", "container", ""), "--root", "storage", "--runroot", "run", "--tmpdir", "tmp"),
        *("--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", runtime, "--events-backend", "none"),
        *("run", "--rm", "--interactive", "--log-driver", "none"),
    ]


def _kept() -> list[str]:
    """What every container is kept from."""
    return [
        *("--network", "none", "--ipc", "none", "--no-hosts", "--hostname", "container", "--read-only"),
        *("--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
        *("--security-opt", "mask=/sys", "--preserve-fds", "1", "--unsetenv-all"),
    ]


def _memory_files(disk: int) -> list[str]:
    shm = disk // _SHM_SHARE
    return [
        *("--mount", "type=tmpfs,dst=/dev,tmpfs-size=65536,tmpfs-mode=0755"),
        *("--mount", f"type=tmpfs,dst=/tmp,tmpfs-size={disk - shm},tmpfs-mode=0700"),
        *("--mount", f"type=tmpfs,dst=/dev/shm,tmpfs-size={shm},tmpfs-mode=0700"),
    ]


def _system() -> list[str]:
    """Places of the system that are no symbolic links."""
    places = (*SYSTEM, *FILES, LOCALTIME)
    return [place for place in places if os.path.exists(place) and not os.path.islink(place)]


def _skeleton(root: Path, binds: Sequence[str]) -> str:
    for bind in binds:
        if "," in bind or '"' in bind:
            raise ConfigError(f"{bind}: podman takes no path with a comma or a quote", fix="give another place to read")
    root.mkdir(mode=0o755)
    for place in (*_OWN, *(bind[1:] for bind in binds if os.path.isdir(bind))):
        (root / place).mkdir(mode=0o755, parents=True, exist_ok=True)
    for place in (*_OWN_FILES, *(bind[1:] for bind in binds if not os.path.isdir(bind))):
        (root / place).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        (root / place).touch(mode=0o644)
    for link in (*SYSTEM, LOCALTIME):
        if os.path.islink(link):
            (root / link[1:]).symlink_to(os.readlink(link))
    return str(root)


def _clean(folder: str, group: str) -> None:
    """Remove the empty places, and the control groups of calls that were killed."""
    shutil.rmtree(folder, ignore_errors=True)
    for top in glob.glob(f"/sys/fs/cgroup{group}") + glob.glob(f"/sys/fs/cgroup/*{group}"):
        for place, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(place)
