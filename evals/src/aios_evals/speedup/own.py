"""`aios bench speedup --agent FILE`: a user's own agents with and without the kernel.

The file runs as a program of its own each time. Without the kernel `AIOS_KERNEL=off` makes its decorators do nothing,
and the variables that OpenAI-compatible frameworks read point it at `generate` behind a lock, with the same model.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from aios_evals.speedup.modes import BENCH, server_mode
from aios_kernel.client import AsyncClient, connect
from aios_kernel.config import Config, load
from aios_kernel.engine.load import DEMO
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import KernelInfo, KernelPs, KernelShutdown, KernelStatus, Programs


def run(file: Path, modes: list[str]) -> list[dict[str, Any]]:
    """One row a mode; `identical` says whether the program printed the same as in the first mode."""
    return asyncio.run(_run(file, modes))


async def _run(file: Path, modes: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    printed: list[str] = []
    for mode in modes:
        with tempfile.TemporaryDirectory(prefix="aios-", ignore_cleanup_errors=True) as home:
            opening = _without(home) if mode == "generate_lock" else _with(home, mode.removeprefix("kernel_"))
            async with opening as (environment, figures):
                began = time.perf_counter()
                printed.append(await _program(file, environment))
                figures["makespan_s"] = time.perf_counter() - began
            row: dict[str, Any] = {"framework": "own", "workload": file.name, "mode": mode} | figures
            row["ratio"] = (rows[0] if rows else row)["makespan_s"] / row["makespan_s"]
            row["identical"] = float(printed[-1] == printed[0])
            rows.append(row)
    return rows


@asynccontextmanager
async def _without(home: str) -> AsyncGenerator[tuple[Mapping[str, str], dict[str, Any]]]:
    config = load()
    model = DEMO if config.model == "demo" else Path(config.model)
    if not model.is_dir():
        raise AiosError(f'"{config.model}" is no folder', fix="AIOS_MODEL=/path/of/a/model (both sides load it)")
    figures: dict[str, Any] = {}
    async with server_mode(model, {}) as mode:
        where = dict.fromkeys(("OPENAI_BASE_URL", "OPENAI_API_BASE"), f"{mode.url}/v1")
        yield where | {"AIOS_KERNEL": "off", "OPENAI_API_KEY": BENCH, "AIOS_HOME": home}, figures
        usage = await mode.usage()
        figures |= {"tokens_computed": usage.tokens_computed, "tokens_cached": usage.tokens_cached}


@asynccontextmanager
async def _with(home: str, policy: str) -> AsyncGenerator[tuple[Mapping[str, str], dict[str, Any]]]:
    config: Config = msgspec.structs.replace(load(), home=home, policy=policy, kernel="auto")
    connection = await asyncio.to_thread(connect, config, client=BENCH)
    client = AsyncClient(connection)
    figures: dict[str, Any] = {}
    try:
        yield {"AIOS_HOME": home, "AIOS_KERNEL": "auto"}, figures
        status, table = await client.call(KernelInfo()), await client.call(KernelPs())
        assert isinstance(status, KernelStatus)
        assert isinstance(table, Programs)
        figures |= {
            "tokens_computed": status.tokens_computed,
            "tokens_cached": status.tokens_cached,
            "waiting_s": sum(program.queued_s for program in table.programs),
        }
        await client.call(KernelShutdown())
    finally:
        connection.close()


async def _program(file: Path, environment: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(file), env=os.environ | dict(environment), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise AiosError(f"{file} ended with status {process.returncode}", fix=f"run it alone: python {file}")
    return output.decode(errors="replace")
