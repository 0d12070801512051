"""Commands that run something: `serve` a kernel, `run` an agent's file."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import to_builtins

from aios_adapters import _kernel
from aios_adapters.cli.looking import OWN_NAME, show_table, visible
from aios_kernel.client import Client, connect, kernel_command, kernel_environment, kernel_input, wait_until_free
from aios_kernel.config import Config, home_of, load, socket_of
from aios_kernel.errors import AiosError, Busy, InvalidRequest, KernelLocked, from_code
from aios_kernel.syscalls import Failed, KernelInfo, KernelPs, KernelShutdown, KernelStatus, Programs

Model = Annotated[str | None, typer.Option("--model", help="`demo`, `fake`, a path or a Hugging Face id.")]
Home = Annotated[str | None, typer.Option("--home", help="Data directory.")]
Policy = Annotated[str | None, typer.Option("--policy", help="Scheduling policy: fifo, round_robin, ...")]


def serve(  # noqa: PLR0913 - a command's options
    model: Annotated[str | None, typer.Argument(help="`demo`, a path, a Hugging Face id or openai:NAME.")] = None,
    http: Annotated[
        str | None,
        typer.Option(help="The OpenAI-compatible front: host:port, unix or unix:PATH."),
    ] = None,
    policy: Policy = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Size of the KV pool in tokens.")] = None,
    expert_cache: Annotated[
        float | None, typer.Option(help="Memory for a mixture's experts: a share of them (0.5), or bytes.")
    ] = None,
    expert_int8: Annotated[
        float | None, typer.Option(help="Share of each layer's experts, the least used, that are served in int8.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...")] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="OpenAI-compatible server of the model openai:NAME; again for each of its replicas."),
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Compile the model at the start: less overhead in each step.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face id.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="A LoRA adapter of the model, NAME=PATH or NAME=ID; again for several.")
    ] = None,
    home: Home = None,
    engine: Annotated[
        str | None, typer.Option(help="What computes it: torch, llamacpp, vllm, openai; or a prefix, llamacpp:FILE.")
    ] = None,
    named: Annotated[str | None, typer.Option("--model", help="The same as the argument.")] = None,
    tensor_parallel: Annotated[int | None, typer.Option(min=1, help="GPUs that vLLM spreads the weights over.")] = None,
) -> None:
    """Run a kernel until ctrl-C; agents of every process of this user join it."""
    flags = {
        "model": _spec(engine, model, named), "http": http, "policy": policy, "kv_tokens": kv_tokens,
        "device": device, "dtype": dtype, "expert_cache": expert_cache, "expert_int8": expert_int8, "compile": compile,
        "base_url": ",".join(base_url or []) or None, "revision": revision, "home": home, "loras": _loras(lora),
        "vllm": None if tensor_parallel is None else {**to_builtins(load().vllm), "tensor_parallel": tensor_parallel},
    }  # fmt: skip
    config = _with_front(load(flags))
    if tensor_parallel is not None and not config.model.startswith("vllm:"):
        raise typer.BadParameter(
            f"{config.model} is not served by vLLM: add --engine vllm", param_hint="--tensor-parallel"
        )
    _take_over(config)
    ours, theirs = os.pipe()
    command = [*kernel_command(config, forever=True), "--report-fd", str(theirs)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(theirs,), env=kernel_environment())
    os.close(theirs)
    assert process.stdin is not None
    with process.stdin:
        process.stdin.write(kernel_input(config))
    # Ctrl-C in a terminal reaches the kernel too, a signal to this process alone does not: pass it on, then wait.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: process.terminate())
    with os.fdopen(ours, "rb") as reports:
        _announce(config, reports.read())
    raise SystemExit(process.wait())


def _loras(options: list[str] | None) -> dict[str, str] | None:
    """Adapters by name, their folders as absolute paths: the kernel may run elsewhere. Raises typer.BadParameter."""
    if not options:
        return None
    pairs = [option.partition("=") for option in options]
    for (name, _, source), option in zip(pairs, options, strict=True):
        if not name or not source:
            raise typer.BadParameter(f"{option} is not NAME=PATH")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise typer.BadParameter("a name is given to two adapters")
    folders = {name: (source, Path(source).expanduser()) for name, _, source in pairs}
    return {name: str(folder.resolve()) if folder.is_dir() else source for name, (source, folder) in folders.items()}


def _spec(engine: str | None, model: str | None, named: str | None) -> str | None:
    """The model as the configuration spells it: the engine's name in front, where one is asked for."""
    if model is not None and named is not None:
        raise typer.BadParameter("name the model once, as the argument or by --model")
    model = model if named is None else named
    if engine is None:
        return model
    if model is None:
        model = load().model
    return model if model.partition(":")[0] == engine else f"{engine}:{model}"


def _take_over(config: Config) -> None:
    """Have a kernel that was started for a client leave at once if its last client has gone.

    Raises KernelLocked when it still has clients; any other kernel is left to the start, which says whose it is.
    """
    try:
        connection = connect(config, client=OWN_NAME, start=False)
    except AiosError:
        return
    with contextlib.closing(connection):
        try:
            Client(connection).call(KernelShutdown(if_idle=True))
        except Busy as busy:
            raise KernelLocked(
                f"another kernel (pid {connection.welcome.pid}) owns {home_of(config)}: {busy.message}",
                fix="use it (nothing to start), end it with `aios kill --kernel`, or set AIOS_HOME to another folder",
            ) from busy
        typer.echo(f"the kernel (pid {connection.welcome.pid}) that was left here by its clients makes room")
    wait_until_free(config, config.start_timeout_s)


def _with_front(config: Config) -> Config:
    """A kernel that is served openly has the HTTP front too, on a socket's file, where its libraries are installed."""
    libraries = all(importlib.util.find_spec(name) for name in ("starlette", "uvicorn"))
    return config if config.http or not libraries else msgspec.structs.replace(config, http="unix")


def _front_of(config: Config) -> list[str]:
    """Where its HTTP front listens."""
    if not config.http:
        return []
    connection = connect(config, client=OWN_NAME)
    try:
        status = Client(connection).call(KernelInfo())
    finally:
        connection.close()
    assert isinstance(status, KernelStatus)
    return [f"{address}/v1" if address.startswith("http") else address for address in (status.http or "").split(",")]


def _announce(config: Config, report: bytes) -> None:
    if report == b"ready":
        where = "".join(f" and {address}" for address in _front_of(config))
        typer.echo(f"serving {config.model} on {socket_of(config)}{where}; ctrl-C stops it")
    elif report:
        failed = msgspec.msgpack.decode(report, type=Failed)
        raise from_code(failed.code, failed.message, fix=failed.fix)


def run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A Python file with agents; further arguments are its own.")],
    model: Model = None,
    policy: Policy = None,
    home: Home = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table at the end.")] = False,
) -> None:
    """Run a Python file under a kernel (started for it, or joined) and show what its agents did."""
    if not file.is_file():
        raise typer.BadParameter(f"{file} is no file")
    with _environment(model=model, policy=policy, home=home):
        config = load()
        connection = connect(config, client=OWN_NAME)
        try:
            client = Client(connection)
            _check_kernel(client, model, policy)
            began = time.time()
            _execute(file, context.args)
        finally:
            _kernel.close_links()
        if not quiet:
            _summary(client, began)
        connection.close()


@contextlib.contextmanager
def _environment(**flags: str | None) -> Generator[None]:
    """Flags as `AIOS_*` variables, so that the file's agents and its child processes see them too."""
    names = {f"AIOS_{key.upper()}": value for key, value in flags.items() if value is not None}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _check_kernel(client: Client, asked: str | None, policy: str | None) -> None:
    """Refuse a kernel that was joined and is not what the flags ask for. Raises InvalidRequest."""
    status = client.call(KernelInfo())
    assert isinstance(status, KernelStatus)
    if asked is not None and status.model not in {asked, Path(asked).name, asked.partition(":")[2]}:
        raise InvalidRequest(
            f'the running kernel serves "{status.model}", not "{asked}"',
            fix="aios kill --kernel, then run again; or another data directory: --home DIR",
        )
    if policy is not None and status.policy != policy:
        raise InvalidRequest(
            f'the running kernel schedules by "{status.policy}", not "{policy}"',
            fix=f"aios config policy {policy}; or another data directory: --home DIR",
        )


def _execute(file: Path, arguments: list[str]) -> None:
    before = sys.argv, sys.path[:]
    sys.argv = [str(file), *arguments]
    sys.path.insert(0, str(file.resolve().parent))
    try:
        runpy.run_path(str(file), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def _summary(client: Client, began: float) -> None:
    answer = client.call(KernelPs())
    assert isinstance(answer, Programs)
    rows = [
        (p.agent, p.framework, p.llm_calls, p.tool_calls, p.memory_calls + p.storage_calls, p.queued_s,
         (p.finished_s or time.time()) - p.started_s)
        for p in visible(answer.programs)
        if p.started_s >= began
    ]  # fmt: skip
    columns = ("AGENT", "FRAMEWORK", "LLM CALLS", "TOOL CALLS", "MEMORY CALLS", "WAITING s", "TURNAROUND s")
    show_table("", columns, rows)
