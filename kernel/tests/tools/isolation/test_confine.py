"""Functions and commands at each level, through the registry: arguments in, results and errors out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aios_kernel.config import Config
from aios_kernel.errors import ConfigError, ToolError, ToolTimeout, Unsupported
from aios_kernel.syscalls import ToolInvoke, ToolSpec
from aios_kernel.tools import HostedTool, ToolRegistry
from aios_kernel.tools.commands import CommandTools
from aios_kernel.tools.confinement import Confinement
from aios_kernel.tools.file import CommandEntry, ToolsFile
from aios_kernel.tools.isolation.confine import Confiner
from aios_kernel.tools.isolation.level import Runner
from aios_kernel.tools.isolation.reference import Reference
from aios_kernel.tools.isolation.sandbox import Sandbox
from aios_kernel.tools.isolation.subprocess_level import Subprocess

HERE = Path(__file__).parent.resolve()
STRINGS = {"type": "object", "properties": {"text": {"type": "string"}, "more": {}}}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """`functions` can be imported, and what the confined interpreter reads includes this folder."""
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def confiner(confined: Runner, tmp_path: Path) -> Any:
    confiner = Confiner(confined.level, tmp_path)
    yield confiner
    confiner.stop()


def function(name: str, confiner: Confiner, **more: Any) -> HostedTool:
    spec = ToolSpec(name=name, parameters={})
    return HostedTool(spec, Reference(f"functions:{name}"), isolation=confiner._runner.level.name, **more)


def registry_of(tool: HostedTool, confiner: Confiner) -> ToolRegistry:
    return ToolRegistry([tool], levels={tool.isolation: lambda: confiner})


async def call(registry: ToolRegistry, name: str, arguments: dict[str, Any] | None = None, **more: Any) -> str:
    return (await registry.call(ToolInvoke(name=name, arguments=json.dumps(arguments or {}), **more))).content


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [("add", {"a": 2}, '{"sum":3}'), ("later", {"text": "ä"}, "Ä"), ("point", {}, '{"x":3}')],
)
async def test_a_function_gets_and_gives_json(confiner: Confiner, name: str, arguments: Any, result: str) -> None:
    assert await call(registry_of(function(name, confiner), confiner), name, arguments) == result


async def test_a_function_runs_elsewhere_and_the_kernel_never_imports_it(
    confiner: Confiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_TOKEN", "secret")
    sys.modules.pop("functions", None)
    found = json.loads(await call(registry_of(function("where", confiner), confiner), "where"))
    assert found["pid"] != os.getpid()
    assert set(found["environment"]) <= {"PATH", "LANG", "HOME", "TMPDIR", "PWD"}
    assert found["cwd"] == found["environment"]["TMPDIR"]
    assert "functions" not in sys.modules


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fails", {"text": "because"}, "failed: ValueError: because"),
        ("leaves", {}, "failed: SystemExit: 5"),
        ("no_json", {}, "failed: TypeError"),
        ("crashes", {}, "without a result"),
        ("large", {}, "returned 5,0.* bytes"),
        ("absent", {}, "failed: AttributeError"),
    ],
)
async def test_a_function_that_fails_is_a_typed_error(
    confiner: Confiner, name: str, arguments: Any, message: str
) -> None:
    with pytest.raises(ToolError, match=message):
        await call(registry_of(function(name, confiner), confiner), name, arguments)


async def test_a_function_that_hangs_is_killed(confiner: Confiner) -> None:
    with pytest.raises(ToolTimeout):
        await call(registry_of(function("hangs", confiner, timeout_s=0.5), confiner), "hangs")


async def test_a_status_function_runs_at_the_level_too(confiner: Confiner) -> None:
    tool = confiner(function("add", confiner, effects="queryable", status=Reference("functions:was_done")))
    assert tool.status is not None
    assert await tool.status("known-1") == ("done", {"key": "known-1"})
    assert (await tool.status("other")).state == "not_done"


def test_a_function_that_nobody_else_can_import_is_refused(confiner: Confiner) -> None:
    spec = ToolSpec(name="t", parameters={})
    with pytest.raises(Unsupported, match="cannot be imported by its name"):
        confiner(HostedTool(spec, lambda: 1, isolation=confiner._runner.level.name))


@pytest.mark.parametrize("place", ["relative", "/no/such/place"])
def test_a_place_that_is_none_is_refused(confiner: Confiner, place: str) -> None:
    with pytest.raises(ConfigError, match="no absolute path"):
        confiner(function("add", confiner, confinement=Confinement(read=[place])))


@pytest.mark.parametrize("part", ["", "..", "below"])
def test_a_place_that_shows_the_kernels_data_is_refused(confiner: Confiner, tmp_path: Path, part: str) -> None:
    (tmp_path / "below").mkdir()
    with pytest.raises(ConfigError, match="where the kernel keeps its data"):
        confiner(function("add", confiner, confinement=Confinement(read=[str(tmp_path / part)])))


def test_a_network_is_refused_where_it_cannot_be_kept(confiner: Confiner) -> None:
    tool = function("add", confiner, confinement=Confinement(network=["example.org:443"]))
    if confiner._runner.level.name == "sandbox":
        assert confiner(tool).confined
    else:
        with pytest.raises(ConfigError, match="has no network"):
            confiner(tool)


@pytest.mark.parametrize("entry", ["example.org", "example.org:0", "http://example.org:80", "a b:1", ":80", "x:99999"])
def test_a_network_entry_that_is_none_is_refused(confiner: Confiner, entry: str) -> None:
    with pytest.raises(ConfigError, match="is no host and port"):
        confiner(function("add", confiner, confinement=Confinement(network=[entry])))


# --- levels that are missing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["bwrap", "prlimit"])
def test_a_sandbox_without_its_programs_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    from aios_kernel.tools.isolation import sandbox

    found = shutil.which
    monkeypatch.setattr(sandbox.shutil, "which", lambda name, **more: None if name == missing else found(name, **more))
    sandbox.system_program.cache_clear()
    tool = HostedTool(ToolSpec(name="t", parameters={}), Reference("functions:add"), isolation="sandbox")
    with pytest.raises(Unsupported, match=f"needs {missing}") as caught:
        ToolRegistry([tool], levels={"sandbox": lambda: Confiner(Sandbox(), tmp_path)})
    assert "apt install" in str(caught.value)
    sandbox.system_program.cache_clear()


def test_a_sandbox_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bubblewrap that is there, and fails as it does without user namespaces."""
    from aios_kernel.tools.isolation import sandbox

    fake = tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    for path in (fake, fake.parent, tmp_path):
        path.chmod(0o755)
    found = shutil.which
    monkeypatch.setattr(
        sandbox.shutil, "which", lambda name, **more: str(fake) if name == "bwrap" else found(name, **more)
    )
    sandbox.system_program.cache_clear()
    with pytest.raises(Unsupported, match="does not work here"):
        Confiner(Sandbox(), tmp_path)
    sandbox.system_program.cache_clear()


def test_an_old_landlock_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aios_kernel.tools.isolation.launcher import landlock

    monkeypatch.setattr(landlock, "abi", lambda: 5)
    with pytest.raises(Unsupported, match="Landlock ABI 5"):
        Confiner(Subprocess(), tmp_path)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["trusted", "subprocess", "sandbox"])
async def commands(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[..., ToolRegistry]]:
    """Makes a registry with one command at each level."""
    level: str = request.param
    if level != "trusted":
        request.getfixturevalue(f"has_{level}")
    made: list[ToolRegistry] = []
    confiners: list[Confiner] = []

    def confiner() -> Confiner:
        confiners.append(Confiner({"subprocess": Subprocess, "sandbox": Sandbox}[level](), tmp_path / "home"))
        return confiners[-1]

    def make(argv: list[str], parameters: dict[str, Any] | None = None, **more: Any) -> ToolRegistry:
        entry = CommandEntry(argv=argv, parameters=parameters or STRINGS, isolation=level, **more)  # type: ignore[arg-type]
        source = CommandTools(Config(), ToolsFile(commands={"c": entry}))
        made.append(ToolRegistry(sources={"commands": source}, levels={level: confiner}))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()
    for each in confiners:
        each.stop()


@pytest.mark.parametrize(
    "text", ["plain", "two words", "$(id)", "`id`", "; id", "a'b\"c", "*", "äö\n", "{more}", "%s", "\\", ""]
)
async def test_each_placeholder_stays_one_argument(commands: Any, text: str) -> None:
    registry = commands(["printf", "[%s]", "x{text}", "--y={text}", "{{text}}"])
    assert await call(registry, "c", {"text": text}) == f"[x{text}][--y={text}][{{text}}]"


async def test_a_word_without_its_argument_is_left_out(commands: Any) -> None:
    registry = commands(["printf", "[%s]", "a", "--more={more}", "{text}"])
    assert await call(registry, "c", {"text": "t"}) == "[a][t]"
    assert await call(registry, "c", {"text": "t", "more": 3}) == "[a][--more=3][t]"
    assert await call(registry, "c", {"text": "t", "more": None}) == "[a][t]"
    assert await call(registry, "c", {"text": "t", "more": [True, "x"]}) == '[a][--more=[true,"x"]][t]'


async def test_an_argument_does_not_become_an_option(commands: Any) -> None:
    with pytest.raises(ToolError, match='begins with "-"'):
        await call(commands(["printf", "[%s]", "{text}"]), "c", {"text": "--help"})
    with pytest.raises(ToolError, match='begins with "-"'):
        await call(commands(["printf", "[%s]", "{text}{more}"]), "c", {"text": "", "more": "-v"})
    with pytest.raises(ToolError, match='begins with "-"'):
        await call(commands(["printf", "[%s]", "{more}"]), "c", {"more": -1})
    assert await call(commands(["printf", "--", "[%s]", "{text}"]), "c", {"text": "--help"}) == "[--help]"
    assert await call(commands(["printf", "[%s]", "{text}"], options=["text"]), "c", {"text": "-x"}) == "[-x]"


async def test_a_filled_in_double_dash_ends_no_options(commands: Any) -> None:
    """Only one that the tools file has written counts."""
    with pytest.raises(ToolError, match='begins with "-"'):
        await call(
            commands(["printf", "[%s]", "{text}", "{more}"], options=["text"]), "c", {"text": "--", "more": "-x"}
        )


async def test_a_zero_byte_is_refused(commands: Any) -> None:
    with pytest.raises(ToolError, match="zero byte"):
        await call(commands(["printf", "[%s]", "{text}"]), "c", {"text": "a\0b"})


async def test_stdin_is_filled_in(commands: Any) -> None:
    assert await call(commands(["cat"], stdin="<{text}>"), "c", {"text": "in"}) == "<in>"


async def test_a_failure_tells_status_and_last_words(commands: Any) -> None:
    with pytest.raises(ToolError, match="ended with exit status 3: last words"):
        await call(commands(["sh", "-c", "echo first; echo last words >&2; exit 3"]), "c")


async def test_output_beyond_the_limit_is_left_out_and_told(commands: Any) -> None:
    registry = commands(["head", "-c", "5000", "/dev/zero"], confinement=Confinement(output_kb=1))
    assert (await call(registry, "c")).endswith("\n[3,976 more bytes were left out]")


async def test_a_command_that_hangs_is_killed(commands: Any) -> None:
    with pytest.raises(ToolTimeout):
        await call(commands(["sleep", "77"], timeout_s=0.5), "c")


async def test_named_variables_are_passed_on(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "yes")
    monkeypatch.setenv("AIOS_TOKEN", "secret")
    found = await call(commands(["env"], env=["GIVEN", "ABSENT"]), "c")
    assert "GIVEN=yes" in found
    assert "secret" not in found


async def test_a_program_of_ones_own_and_places_to_read(commands: Any, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "notes").write_text("found me\n")
    program = tmp_path / "own-program"
    program.write_text(f"#!/bin/sh\ncat {place}/notes\n")
    for path in (program, place, tmp_path, *list(tmp_path.parents)[:-2]):
        path.chmod(0o755)
    assert await call(commands([str(program)], confinement=Confinement(read=[str(place)])), "c") == "found me\n"


async def test_a_queryable_command_is_asked(commands: Any) -> None:
    script = 'case "$0" in known*) echo "it was $0";; other) exit 1;; *) exit 2;; esac'
    registry = commands(["true"], effects="queryable", status=["sh", "-c", script, "{idempotency_key}"])
    ask = registry.tool("c").status
    assert await ask("known-1") == ("done", "it was known-1\n")
    assert (await ask("other")).state == "not_done"
    assert (await ask("third")).state == "unknown"


def test_a_placeholder_that_is_no_parameter_stops_the_start() -> None:
    entry = CommandEntry(argv=["printf", "{nothing}"], parameters=STRINGS)
    with pytest.raises(ConfigError, match=r"\{nothing\} is no parameter"):
        CommandTools(Config(), ToolsFile(commands={"c": entry}))


def test_a_program_that_is_not_there_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="there is no program no-such-program"):
        CommandTools(Config(), ToolsFile(commands={"c": CommandEntry(argv=["no-such-program"])}))


async def test_calls_run_side_by_side(commands: Any) -> None:
    registry = commands(["sh", "-c", "sleep 0.2; echo $0", "{text}"])
    answers = await asyncio.gather(*(call(registry, "c", {"text": str(number)}) for number in range(8)))
    assert [int(answer) for answer in answers] == list(range(8))


async def test_a_call_whose_caller_has_gone_is_killed(commands: Any, tmp_path: Path) -> None:
    """As when the syscall is cancelled."""
    tag = f"77.{secrets.randbelow(10**12):012}"
    registry = commands(["sleep", "{text}"])
    task = asyncio.create_task(call(registry, "c", {"text": tag}))
    for _ in range(500):
        if running(tag):
            break
        await asyncio.sleep(0.02)
    assert running(tag)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(250):
        if not running(tag):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it still runs")


def running(argument: str) -> bool:
    """Whether a process has this argument."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if argument.encode() in (entry / "cmdline").read_bytes():
                    return True
    return False
