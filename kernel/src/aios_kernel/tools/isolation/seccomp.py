"""Seccomp filters, written by libseccomp, which knows each architecture's numbers; launcher and bwrap install them."""

from __future__ import annotations

import errno
import functools
import json
import socket
import tempfile
from typing import Any

from aios_kernel.errors import Unsupported

_MOUNTS = (
    "mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr", "fsopen",
    "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount", "quotactl", "quotactl_fd", "swapon",
    "swapoff", "open_by_handle_at", "fanotify_init",
)  # fmt: skip
_OTHERS = (
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_getfd", "perf_event_open",
    "lookup_dcookie", "unshare", "setns",
)  # fmt: skip
_MACHINE = (
    "acct", "add_key", "adjtimex", "bpf", "clock_adjtime", "clock_settime", "delete_module", "finit_module",
    "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kexec_file_load",
    "kexec_load", "keyctl", "nfsservctl", "reboot", "request_key", "sethostname", "setdomainname", "settimeofday",
    "stime", "syslog", "uselib", "userfaultfd", "vhangup", "vm86", "vm86old",
)  # fmt: skip
_SINCE_5_1 = {
    "mount_setattr": 442, "quotactl_fd": 443, "fchmodat2": 452, "statmount": 457, "listmount": 458, "setxattrat": 463,
    "removexattrat": 466, "open_tree_attr": 467,
}  # fmt: skip
"""Numbers that are the same everywhere, of calls that the installed libseccomp may be too old to know."""

_NAMESPACES = (0x00000080, 0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_TERMINAL_INPUT = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX type into the terminal of whoever started the kernel."""

_32 = 0xFFFFFFFF
_FAMILIES = 64
"""Above all address families that Linux has."""


_BESIDE_LANDLOCK = (
    "inotify_add_watch", "shmget", "semget", "msgget", "mq_open", "mq_unlink",
)  # fmt: skip
"""What reaches other processes and files without opening them."""

_BY_PATH = (
    "chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "setxattr", "lsetxattr", "setxattrat",
    "removexattr", "lremovexattr", "removexattrat", "utime", "utimes", "futimesat",
)  # fmt: skip
"""Changes of modes, owners, times and attributes, which Landlock does not see, of whatever the user owns."""

_OF_PROCESSES = {
    "prlimit64": 0, "sched_setaffinity": 0, "sched_setparam": 0, "sched_setscheduler": 0, "sched_setattr": 0,
    "setpriority": 1, "ioprio_set": 1,
}  # fmt: skip
"""Changes of a process, by the position of its number; 0 is the caller."""


@functools.cache
def isolated() -> bytes:
    """The filter for a tool with namespaces of its own, as BPF instructions; refused calls give EPERM.

    It denies what tools do not need and what has undone sandboxes: mounts, namespaces, ptrace, keys, modules, io_uring,
    sockets of other families than Internet and unix.

    Raises:
        Unsupported: libseccomp or pyseccomp is not installed.
    """
    seccomp = _library()
    return _exported(_base(seccomp, (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)))


@functools.cache
def among_others(*, own_user: bool, one_session: bool = False) -> bytes:
    """The filter for a tool that shares the machine's namespaces: as `isolated`, and what Landlock leaves open.

    No socket can be made, only connected pairs; no other process can be slowed or limited.

    Args:
        own_user: nobody else's files and processes are the tool's user's.
        one_session: no process may leave its group, so that a signal to the group ends all.

    Raises:
        Unsupported: libseccomp or pyseccomp is not installed.
    """
    seccomp = _library()
    rules = _base(seccomp, ())
    denied = seccomp.ERRNO(errno.EPERM)
    # A pair for datagrams could be turned to any address.
    rules.add_rule(denied, "socketpair", seccomp.Arg(1, seccomp.MASKED_EQ, 0xF, int(socket.SOCK_DGRAM)))
    for name in (*_BESIDE_LANDLOCK, *(("setsid", "setpgid") if one_session else ())):
        _deny(seccomp, rules, denied, name)
    if not own_user:
        for name in _BY_PATH:
            _deny(seccomp, rules, denied, name)
        rules.add_rule(denied, "utimensat", seccomp.Arg(1, seccomp.NE, 0))  # 0: of an open file
        for name, position in _OF_PROCESSES.items():
            rules.add_rule(denied, name, seccomp.Arg(position, seccomp.NE, 0))
    return _exported(rules)


@functools.cache
def profile() -> str:
    """The rules of `isolated` as container engines read them (OCI, JSON)."""

    def denied(names: list[str], code: int, *arguments: dict[str, Any]) -> dict[str, Any]:
        return {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": code, "args": [*arguments]}

    def masked(index: int, mask: int, value: int) -> dict[str, Any]:
        return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}

    families = sorted({*range(_FAMILIES)} - {int(socket.AF_UNIX), int(socket.AF_INET), int(socket.AF_INET6)})
    rules = [
        denied([*_MOUNTS, *_OTHERS, *_MACHINE], errno.EPERM),
        denied(["clone3"], errno.ENOSYS),
        *(denied(["clone"], errno.EPERM, masked(0, flag, flag)) for flag in _NAMESPACES),
        *(denied(["ioctl"], errno.EPERM, masked(1, _32, request)) for request in _TERMINAL_INPUT),
        *(denied(["socket"], errno.EPERM, {"index": 0, "value": each, "op": "SCMP_CMP_EQ"}) for each in families),
        denied(["socket"], errno.EPERM, {"index": 0, "value": _FAMILIES, "op": "SCMP_CMP_GE"}),
    ]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})


def _base(seccomp: Any, families: tuple[int, ...]) -> Any:
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    denied = seccomp.ERRNO(errno.EPERM)
    for name in (*_MOUNTS, *_OTHERS, *_MACHINE):
        _deny(seccomp, rules, denied, name)
    for flag in _NAMESPACES:
        rules.add_rule(denied, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags lie in memory; libraries then use clone
    for request in _TERMINAL_INPUT:
        rules.add_rule(denied, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, _32, request))
    for family in set(range(_FAMILIES)) - set(families):
        rules.add_rule(denied, "socket", seccomp.Arg(0, seccomp.EQ, family))
    rules.add_rule(denied, "socket", seccomp.Arg(0, seccomp.GE, _FAMILIES))
    return rules


def _exported(rules: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def _deny(seccomp: Any, rules: Any, action: int, name: str) -> None:
    try:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    except ValueError:
        number = -1
    if number == -1:
        number = _SINCE_5_1.get(name, -1)
    if number >= 0:  # below: this architecture has no such call
        rules.add_rule(action, number)


def _library() -> Any:
    try:
        import pyseccomp  # pyright: ignore[reportMissingTypeStubs]
    except (ImportError, RuntimeError, OSError) as error:
        raise Unsupported(
            f"seccomp filters cannot be made: {error}",
            fix="pip install 'aios-kernel[server]' and install libseccomp (Debian: apt install libseccomp2)",
        ) from error
    return pyseccomp
