"""Landlock by its three system calls; see landlock(7). py-landlock wraps the same three and knows no scopes."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # one table for all architectures since Linux 5.1
_VERSION = 1
_BENEATH = 1
_O_PATH = getattr(os, "O_PATH", 0)

LEAST_ABI = 6
"""Linux 6.12: the first that keeps signals and abstract sockets inside the domain."""

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_ALL = (1 << 16) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = _ALL & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE
_TCP = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("folder", ctypes.c_int32))


def abi() -> int:
    """The kernel's Landlock ABI; 0 without Landlock."""
    try:
        return _call(_CREATE, None, ctypes.c_size_t(0), _VERSION)
    except OSError:
        return 0


def ruleset(read: Iterable[str], write: Iterable[str]) -> int:
    """A descriptor of rules: `read` may be read and executed, `write` changed, all else of the file system nothing.

    TCP, signals to processes outside and their abstract sockets are denied as well. Places that do not exist are left
    out. Raises OSError.
    """
    rules = _Ruleset(_ALL, _TCP, _SIGNALS_AND_ABSTRACT_SOCKETS)
    descriptor = _call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    for access, places in ((_READ, read), (_WRITE, write), (_DEVICE, _DEVICES)):
        for place in places:
            _allow(descriptor, place, access)
    return descriptor


def restrict(descriptor: int) -> None:
    """Hold this thread to the rules, and all that it starts. Needs no_new_privs. Raises OSError."""
    _call(_RESTRICT, descriptor, 0)
    os.close(descriptor)


def _allow(descriptor: int, place: str, access: int) -> None:
    try:
        folder = os.open(place, _O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            return
        raise
    try:
        if not stat.S_ISDIR(os.fstat(folder).st_mode):
            access &= _OF_FILES
        rule = _Beneath(access, folder)
        _call(_ADD, descriptor, _BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)


def _call(number: int, *arguments: object) -> int:
    done = _libc.syscall(ctypes.c_long(number), *arguments)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return done
