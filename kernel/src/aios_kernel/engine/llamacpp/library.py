"""llama.cpp's C interface as llama-cpp-python hands it on, its version checked and its log in ours."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import logging
from typing import Any

from aios_kernel.errors import ConfigError

TESTED = "0.3.36"
"""Structures are passed by their layout, which changes without notice: no other version is taken."""
_log = logging.getLogger(__name__)
_LEVELS = {3: logging.INFO, 4: logging.WARNING}
"""Of ggml's warnings and errors; what is below, or continues another line, is for its own developers."""


@functools.cache
def library() -> Any:
    """The module of C functions.

    Raises:
        ConfigError: it is not installed, of another version, or cannot be loaded on this processor.
    """
    fix = f"pip install 'aios-kernel[llamacpp]' (llama-cpp-python {TESTED}; it is built from source in some minutes)"
    try:
        found = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError("the llamacpp engine needs llama-cpp-python, which is not installed", fix=fix) from error
    if found != TESTED:
        raise ConfigError(f"llama-cpp-python {found} is installed; the llamacpp engine is made for {TESTED}", fix=fix)
    try:
        api: Any = importlib.import_module("llama_cpp.llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(f"llama-cpp-python cannot be loaded: {error}", fix=fix) from error
    api.llama_log_set(_callback(api), ctypes.c_void_p(0))
    api.llama_backend_init()
    return api


@functools.cache
def _callback(api: Any) -> Any:
    """What takes its log lines; kept for ever, since the library calls it at any time."""

    def write(level: int, text: bytes, _data: object) -> None:
        if level in _LEVELS:
            _log.log(_LEVELS[level], "%s", text.decode(errors="replace").rstrip())

    return api.llama_log_callback(write)
