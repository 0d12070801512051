"""Compiles the C++ sources beside this file, once for each version of them and each kind of processor."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_SOURCES = ("attention.cpp", "linear.cpp", "choice.cpp")
_HEADERS = ("words.h", "lora.h")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_COMPILERS = ("g++", "clang++")
_LIMIT_S = 120.0
OFF = "AIOS_NATIVE"
"""Set to `0` in the environment, it leaves the compiled code out."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled sources, or None where that is switched off or they cannot be compiled (the log says why)."""
    if os.environ.get(OFF) == "0":
        return None
    try:
        return ctypes.CDLL(str(_compiled(_folder())))
    except (OSError, subprocess.SubprocessError) as error:
        detail = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        _log.info("attention and linear layers run without compiled code: %s", detail)
        return None


def _compiled(folder: Path) -> Path:
    """Path of the library, compiled if it is not there. Raises OSError, SubprocessError."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"no C++ compiler ({', '.join(_COMPILERS)})")
    texts = [(_FOLDER / name).read_bytes() for name in (*_SOURCES, *_HEADERS)]
    name = hashlib.sha256(b"\0".join([*texts, compiler.encode(), " ".join(_FLAGS).encode(), _processor()])).hexdigest()
    target = folder / f"aios-{name[:24]}.so"
    if not target.is_file():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as building:
            built = Path(building) / target.name
            command = [compiler, *_FLAGS, *(str(_FOLDER / name) for name in _SOURCES), "-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
            built.replace(target)
    return target


def _folder() -> Path:
    """The user's own cache folder: nobody else may put a library there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aios" / "native"


@functools.cache
def processor_flags() -> frozenset[str]:
    """What the processor says it can do (`avx512f`, ...); empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def _processor() -> bytes:
    """What the processor can do: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))}))
