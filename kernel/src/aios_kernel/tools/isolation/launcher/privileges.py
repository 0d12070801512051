"""What a process gives up before it runs a tool: capabilities, its user, resources, system calls."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 8, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_SECCOMP_FILTER = 2
_AMBIENT_RAISE = 2
_CAP_VERSION_3 = 0x20080522
_DAC_READ_SEARCH = 2
_LAST_CAP = 63

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def adopt_orphans() -> None:
    """Become the parent of what descendants leave behind, so that none gets away by forking twice."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become(uid: int, *, reads: bool) -> None:
    """Turn from root into a user that owns nothing, for good.

    Args:
        uid: user and group; no other process has them.
        reads: keep the one capability to read what root can read. The caller denies what may not be read by Landlock,
            and `open_by_handle_at`, which the capability opens, by seccomp.
    """
    for capability in range(_LAST_CAP + 1):
        if reads and capability == _DAC_READ_SEARCH:
            continue
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more
    os.setgroups([])
    _prctl(_PR_SET_KEEPCAPS, int(reads))
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the change of users has cleared it
    _set_capabilities(1 << _DAC_READ_SEARCH if reads else 0)
    if reads:
        _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, _DAC_READ_SEARCH)


def forbid_new_privileges() -> None:
    """From here on no exec gives more rights than the process has."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def filter_calls(program: bytes) -> None:
    """Install a seccomp filter, as BPF instructions. Raises OSError."""
    _prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(_Program(len(program) // 8, program)))


def limit(limits: dict[str, int]) -> None:
    """Set resource limits by name (`as`, `nproc`, ...), those below the present hard limit only."""
    for name, wanted in limits.items():
        number: int = getattr(resource, f"RLIMIT_{name.upper()}")
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(number, (value, value))


def tasks_of(uid: int) -> int:
    """Processes and threads of a user, which is what RLIMIT_NPROC counts."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == uid:
                    with open(f"/proc/{entry.name}/stat", "rb") as file:
                        count += int(file.read().rpartition(b")")[2].split()[17])
            except (OSError, IndexError):
                continue  # it has ended
    return count


def _set_capabilities(bits: int) -> None:
    header = _CapHeader(_CAP_VERSION_3, 0)
    data = (_CapData * 2)(_CapData(bits, bits, bits), _CapData(0, 0, 0))
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _prctl(option: int, first: Any, *rest: Any) -> None:
    numbers = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in (first, *rest)]
    numbers += [ctypes.c_ulong(0)] * (4 - len(numbers))
    if _libc.prctl(option, *numbers) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")
