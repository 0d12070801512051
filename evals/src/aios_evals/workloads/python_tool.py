"""A Python tool that really runs: recorded code in a process of its own, bounded in time, memory and reach."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
import tempfile

TIMEOUT_S = 10.0
_MEMORY_BYTES = 512 * 1024 * 1024
_OUTPUT_LIMIT = 4000
_BWRAP = [
    "--unshare-all",
    "--die-with-parent",
    "--ro-bind",
    "/",
    "/",
    "--tmpfs",
    "/tmp",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
]


def _bounded() -> None:
    """In the child, before the code: no more CPU, memory or file size than this."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(TIMEOUT_S), int(TIMEOUT_S)))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


def _seen() -> list[str]:
    """The interpreter's own folders, which may lie below the /tmp that is hidden."""
    folders = dict.fromkeys([sys.prefix, sys.base_prefix])
    return [word for folder in folders for word in ("--ro-bind", folder, folder)]


async def run_python(code: str) -> str:
    """What the code prints, or the last line of its traceback; cut to 4,000 characters.

    Uses bubblewrap (no network, nothing writable but a private /tmp) where it is installed; the limits hold anyway.
    """
    sandbox = [bwrap, *_BWRAP] if (bwrap := shutil.which("bwrap")) else []
    with tempfile.TemporaryDirectory(prefix="aios-python-") as folder:
        process = await asyncio.create_subprocess_exec(
            *sandbox, *(_seen() if sandbox else ()), sys.executable, "-I", "-",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            cwd="/" if sandbox else folder, env={"PYTHONHASHSEED": "0"}, preexec_fn=_bounded,
        )  # fmt: skip
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, _ = await process.communicate(code.encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"[timed out after {TIMEOUT_S:g} s]"
    text = output.decode(errors="replace").strip()
    if process.returncode:
        text = text.splitlines()[-1] if text else f"[exit status {process.returncode}]"
    return text[:_OUTPUT_LIMIT] or "[Executed Successfully with No Output]"
