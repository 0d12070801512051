"""Hosted tools made to run at an isolation level."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias, final

import msgspec

from aios_kernel.errors import AiosError, ConfigError, ToolError, ToolTimeout, Unsupported
from aios_kernel.tools.confinement import Confinement
from aios_kernel.tools.hosted import EffectStatus, HostedTool, Launch
from aios_kernel.tools.isolation import places
from aios_kernel.tools.isolation.forkserver import FOLDER
from aios_kernel.tools.isolation.launcher.tool import ALONE
from aios_kernel.tools.isolation.level import Job, Level, Runner
from aios_kernel.tools.isolation.process import Outcome
from aios_kernel.tools.isolation.proxy import AllowList
from aios_kernel.tools.isolation.reference import StatusCommand, reference_of

_NOT_DONE = 1
_ALONE = "import sys; sys.path.insert(0, {folder!r}); from launcher.tool import become_tool_alone as main; main()"
_PROBE_S = 30.0
_FOR_GOOD_S = 10 * 365 * 86_400.0

Serve: TypeAlias = Callable[[Sequence[int]], Awaitable[Outcome]]
"""Runs a program on descriptors for its input, output, errors and result, which it takes over, until its end.

Cancelled, all its processes are dead before it returns. Raises ToolNotStarted, Busy.
"""


@final
class Confiner:
    """Gives tools whose `run` starts a process at one level; see `Confine`.

    Args:
        level: where they run.
        home: the kernel's data directory, which no tool may read.

    Raises:
        Unsupported: this machine lacks the level. It was tried, not only looked for.
    """

    def __init__(self, level: Level, home: Path) -> None:
        self._runner = Runner(level)
        self._home = home
        self._runner.check()
        _try(self._runner)

    def __call__(self, tool: HostedTool) -> HostedTool:
        """The tool at this level.

        Raises:
            ConfigError: a place that it may not read, or a network that the level cannot keep.
            Unsupported: a function that no other process can import.
        """
        name, confinement = tool.spec.name, tool.confinement
        self._check(name, confinement)
        launch = None
        lasts = self._runner.level.outlives and not confinement.network  # the proxy is the kernel's
        if tool.launch is not None:
            run = command(self._runner, name, tool.launch, confinement)
            launch = alone(self._runner, name, tool.launch, confinement) if lasts else None
        else:
            places.check(name, places.of_python(), self._home)
            reference = reference_of(name, tool.run)
            run = self._function(name, reference, confinement)
            launch = function_alone(self._runner, reference, confinement) if lasts else None
        return dataclasses.replace(tool, run=run, launch=launch, status=self._status(tool), confined=True)

    def server(self, name: str, launch: Launch, confinement: Confinement) -> Serve:
        """The way to run a program at this level that talks on its streams for as long as it is wanted.

        Raises:
            ConfigError: a place that it may not read, or a network that the level cannot keep.
            ToolError: there is no such program.
        """
        self._check(name, confinement)
        job = dataclasses.replace(_job(name, launch, confinement), time_s=_FOR_GOOD_S)

        async def serve(streams: Sequence[int]) -> Outcome:
            return await self._runner.run_on(job, streams)

        return serve

    def stop(self) -> None:
        """End the fork server."""
        self._runner.stop()

    def _check(self, name: str, confinement: Confinement) -> None:
        places.check(name, confinement.read, self._home)
        AllowList(confinement.network)
        if confinement.network and not self._runner.level.networks:
            raise ConfigError(
                f'tool "{name}" is to reach {confinement.network[0]}; level {self._runner.level.name} has no network',
                fix='declare isolation = "sandbox"',
            )

    def _function(self, name: str, reference: str, confinement: Confinement) -> Callable[..., Any]:
        async def run(*positional: Any, **named: Any) -> object:
            job = Job(stdin=_call(reference, positional, named), confinement=confinement)
            return _returned(name, await self._runner.run(job))

        return run

    def _status(self, tool: HostedTool) -> Callable[[str], Any] | None:
        if isinstance(tool.status, StatusCommand):
            return status(self._runner, tool.spec.name, tool.status, tool.confinement)
        if tool.status is None:
            return None
        ask = self._function(tool.spec.name, reference_of(tool.spec.name, tool.status), tool.confinement)

        async def asked(key: str) -> EffectStatus:
            return msgspec.convert(await ask(key), EffectStatus)

        return asked


def command(
    runner: Runner, name: str, launch: Callable[[Mapping[str, Any]], Launch], confinement: Confinement
) -> Callable[..., Any]:
    """A `run` that starts a tool's program and gives what it prints."""

    async def run(**arguments: Any) -> str:
        return _printed(name, await runner.run(_job(name, launch(arguments), confinement)))

    return run


def status(runner: Runner, name: str, ask: StatusCommand, confinement: Confinement) -> Callable[[str], Any]:
    """A `status` that starts a program: 0 means done, and what it prints is the result; 1 means not done."""

    async def asked(key: str) -> EffectStatus:
        outcome = await runner.run(_job(name, ask.launch(key), confinement))
        if outcome.status == 0:
            return EffectStatus("done", _printed(name, outcome))
        return EffectStatus("not_done" if outcome.status == _NOT_DONE else "unknown")

    return asked


def alone(
    runner: Runner, name: str, launch: Callable[[Mapping[str, Any]], Launch], confinement: Confinement
) -> Callable[[Mapping[str, Any]], Launch]:
    """A `launch` whose process confines itself: a long job, which outlives the kernel and its fork server.

    Its network cannot be the kernel's proxy, so tools with a network have none.
    """

    def confined(arguments: Mapping[str, Any]) -> Launch:
        return _alone(runner, _job(name, launch(arguments), confinement))

    return confined


def function_alone(runner: Runner, reference: str, confinement: Confinement) -> Callable[[Mapping[str, Any]], Launch]:
    """`alone` for a function: what it returns is printed as the model is to read it, what it prints is progress."""

    def confined(arguments: Mapping[str, Any]) -> Launch:
        return _alone(runner, Job(stdin=_call(reference, (), arguments, text=True), confinement=confinement))

    return confined


def _alone(runner: Runner, job: Job) -> Launch:
    request, program = runner.alone(job)
    wanted = msgspec.to_builtins(request) | {"program": program.hex(), "function": not job.argv}
    argv = [places.interpreter(), "-I", "-S", "-c", _ALONE.format(folder=FOLDER)]
    return Launch(argv=argv, env={ALONE: msgspec.json.encode(wanted).decode()}, stdin=job.stdin.decode())


def _call(reference: str, positional: Sequence[Any], named: Mapping[str, Any], *, text: bool = False) -> bytes:
    """What `launcher.function` reads."""
    call = {"path": places.import_path(), "function": reference, "positional": positional, "named": named}
    return msgspec.json.encode(call | {"text": text})


def _job(name: str, launch: Launch, confinement: Confinement) -> Job:
    program = shutil.which(launch.argv[0], path=launch.env.get("PATH", places.PATH))
    if program is None:
        raise ToolError(f'tool "{name}": there is no program {launch.argv[0]}', fix="install it where the kernel runs")
    program = os.path.abspath(program)
    if not places.is_of_system(program):
        confinement = msgspec.structs.replace(confinement, read=[*confinement.read, program])
    return Job(
        argv=[program, *launch.argv[1:]],
        env=launch.env,
        cwd=launch.cwd,
        stdin=launch.stdin.encode(),
        confinement=confinement,
    )


def _printed(name: str, outcome: Outcome) -> str:
    """What a program has printed; raises ToolError for one that failed."""
    if outcome.timed_out:
        raise ToolTimeout(f'tool "{name}" did not end in time')
    if outcome.status != 0:
        raise ToolError(f'tool "{name}" {how_it_ended(outcome.status)}{_last_words(outcome)}')
    text = outcome.stdout.decode(errors="replace")
    return f"{text}\n[{outcome.left_out:,} more bytes were left out]" if outcome.left_out else text


def _returned(name: str, outcome: Outcome) -> object:
    """What a function has returned; raises ToolError for one that raised or was killed."""
    if outcome.timed_out:
        raise ToolTimeout(f'tool "{name}" did not end in time')
    if outcome.result_left_out:
        raise ToolError(
            f'tool "{name}" returned {len(outcome.result) + outcome.result_left_out:,} bytes',
            fix="return less, or raise confinement.output_kb in the tools file",
        )
    try:
        answer = msgspec.json.decode(outcome.result, type=dict[str, Any])
    except msgspec.DecodeError:
        raise ToolError(
            f'tool "{name}" {how_it_ended(outcome.status)} without a result{_last_words(outcome)}'
        ) from None
    if "error" in answer:
        raise ToolError(f'tool "{name}" failed: {answer["error"]}')
    return answer.get("value")


def how_it_ended(status: int) -> str:
    """An exit status in words; negative: the signal."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _last_words(outcome: Outcome) -> str:
    words = outcome.stderr.decode(errors="replace").strip()
    return f": {words}" if words else ""


def _try(runner: Runner) -> None:
    """Run a program that does nothing. Raises Unsupported."""
    name = runner.level.name
    try:
        outcome = _blocking(runner, Job(argv=["/bin/true"], time_s=_PROBE_S))
    except AiosError as error:
        raise Unsupported(f"isolation level {name} does not work here: {error.message}", fix=error.fix) from error
    if outcome.status != 0:
        how = f"{how_it_ended(outcome.status)}{_last_words(outcome)}"
        raise Unsupported(
            f"isolation level {name} does not work here: /bin/true {how}",
            fix="allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)",
        )


def _blocking(runner: Runner, job: Job) -> Outcome:
    """Run a job from where a loop may be running already."""
    done: Future[Outcome] = Future()

    def work() -> None:
        try:
            done.set_result(asyncio.run(runner.run(job)))
        except BaseException as error:  # noqa: BLE001 - raised again below
            done.set_exception(error)

    thread = threading.Thread(target=work, name="aios-isolation-probe")
    thread.start()
    thread.join()
    return done.result()
