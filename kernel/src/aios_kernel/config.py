"""Configuration, one schema for both sides: flag > `AIOS_*` environment > `aios.toml` > default."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from aios_kernel.engine.settings import VllmSettings
from aios_kernel.errors import ConfigError
from aios_kernel.scheduler.settings import GroupPolicy, Limits, ServerHints
from aios_kernel.syscalls import WindowStrategy

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Keys of `aios.toml` and, upper-cased behind `AIOS_`, of the environment."""

    kernel: str = "auto"
    """`auto` (start or join), `off`, `inprocess`, `passthrough`, the path of a kernel's socket (`unix://` before it or
    not), or the URL of its HTTP front, `http://127.0.0.1:8400`."""
    home: str = ""
    """Data directory; empty: the platform's user data folder."""
    token: str = ""
    """The connection's token; empty: the one in the data directory, readable by the same user only."""
    python: str = ""
    """The interpreter that an auto-started kernel runs in; empty: this one."""
    model: str = "demo"
    """What to serve: `demo`, `fake`, a path, a Hugging Face id, `llamacpp:FILE.gguf`, `vllm:` and a path or id, or
    `openai:NAME` for a model at `base_url`."""
    base_url: str = ""
    """Of the OpenAI-compatible server behind `model = "openai:NAME"`, such as `http://127.0.0.1:8000/v1`; several,
    with commas between them, serve the same model, and a program stays at one."""
    api_key: str = ""
    """That server's key."""
    server_slots: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Calls that are open at that server at once; the policy decides whose."""
    server_hints: ServerHints = ServerHints()
    """What that server is told beside the calls."""
    vllm: VllmSettings = VllmSettings()
    """How the server of a model `vllm:...` is started."""
    revision: str = ""
    """Branch, tag or commit of a Hugging Face id; empty: its main branch."""
    models: dict[str, str] = {}
    """Model names that agents use, mapped to the served model's name."""
    loras: dict[str, str] = {}
    """LoRA adapters of the model: names, by which agents ask for them, and where they are, a folder or a Hugging Face
    id."""
    strict: bool = False
    """Refuse model names that are neither loaded nor mapped."""
    device: str = "auto"
    dtype: str = "auto"
    kv_tokens: _Count = 0
    """Size of the KV pool in tokens; 0: from free memory."""
    expert_cache: _Share = 0.0
    """Memory for the experts of a mixture, whose others stay in the checkpoint's files: up to 1 a share of them all,
    above it bytes; 0: all are loaded."""
    expert_int8: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Share of the experts of each layer, the least used, that such a cache serves in int8."""
    threads: _Count = 0
    """Threads of the engine; 0: the library's choice."""
    compile: bool = False
    """Compile the model at the start: a minute at first, some seconds later; then each step has less overhead."""
    window: WindowStrategy = "refuse"
    """Conversations longer than the model's window: `refuse`, `drop_oldest_turns` or `summarise`."""
    policy: str = "program"
    policy_options: dict[str, float | int | str | bool] = {}
    policy_groups: dict[str, GroupPolicy] = {}
    """Policies of agent groups; they share the engine by their weights with the other groups, which `policy` serves."""
    limits: Limits = Limits()
    """Rates, totals and calls at once of agents and groups."""
    kv_host_bytes: _Count = 0
    """Host memory for contexts that are swapped out; 0: a quarter of the machine's memory."""
    kv_disk_bytes: _Count = 4 << 30
    """Disk space below the data directory for those that find no room there; 0: none."""
    embedder: str = "auto"
    """`auto` (all-MiniLM-L6-v2: installed package, then hub), `hash`, or the path of a sentence-transformers model."""
    log_bytes: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20
    """RAM for the interaction log of one program; what was used least moves to the data directory."""
    reranker: str = ""
    """Folder of a cross-encoder that looks at the best notes of a search once more; empty: none."""
    vectors: str = "chroma"
    """Vector index of the memory: `chroma` or `exact`."""
    index_from: _Count = 50_000
    """Spaces with more notes are kept in it; smaller ones are searched exactly, in RAM. At most 200,000: from there on
    searches need it."""
    mounts: dict[str, str] = {}
    """Folders of text files by the space that finds them: `"agent/NAME" = "FOLDER"`."""
    storage: str = "sqlite"
    """Where files live: `sqlite`, in the data directory, or `postgres`."""
    storage_url: str = ""
    """Of the database, such as `postgresql://user@host/name`; its password is better left to PGPASSFILE."""
    storage_quota_bytes: _Count = 0
    """What the files of one agent or group may have, all versions together; 0: any."""
    access: str = ""
    """The policy file of access, below the data directory unless the path is absolute; empty: `access.toml`, if it is
    there."""
    audit_seals: str = ""
    """Folder of the audit log's signed seals; best one where only the kernel's user can write, on another disk. Empty:
    `audit.seals` in the data directory."""
    http: str = ""
    """Where the OpenAI-compatible front listens: `host:port` on loopback, `unix` (`run/http.sock` in the data
    directory) or `unix:PATH`; several with commas between them; empty: nowhere (for `aios serve`: `unix`)."""
    principals: dict[str, str] = {}
    """Further principals: name to the SHA-256 (hex) of their token."""
    max_open_calls: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    """Open syscalls over all connections; beyond it `Busy`."""
    tools: str = ""
    """The tools file, below the data directory unless the path is absolute; empty: `tools.toml`, if it is there."""
    tool_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    call_timeout_s: _Seconds = 0.0
    """Deadline of a syscall that names none; 0: none."""
    grace_s: _Seconds = 10.0
    """How long an auto-started kernel outlives its last client."""
    start_timeout_s: _Seconds = 180.0
    """How long a client waits for the kernel that it started."""


Origin = str
"""Where a value comes from: `flag`, `AIOS_X`, a file's path or `default`."""


_MODES = ("auto", "off", "inprocess", "passthrough", "")
"""What `kernel` may say besides where a kernel is."""
_PASSTHROUGH = {"model": "fake", "embedder": "hash", "vectors": "exact"}
"""What a kernel that only lets calls pass needs: no model, and nothing that takes time to load."""


def load(flags: Mapping[str, Any] | None = None, *, cwd: Path | None = None) -> Config:
    """The configuration in force. Raises ConfigError on an unknown key or a wrong value."""
    return load_with_origins(flags, cwd=cwd)[0]


def load_with_origins(
    flags: Mapping[str, Any] | None = None, *, cwd: Path | None = None
) -> tuple[Config, dict[str, Origin]]:
    """The configuration and where each of its values comes from."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = dict.fromkeys(Config.__struct_fields__, "default")
    for layer, origin in (_from_file(cwd or Path.cwd()), _from_environment(), _from_flags(flags or {})):
        for key, value in layer.items():
            values[key] = value
            origins[key] = origin.get(key, "")
    if values.get("kernel") == "passthrough":
        chosen = {key: value for key, value in _PASSTHROUGH.items() if key not in values}
        values |= chosen
        origins |= dict.fromkeys(chosen, "kernel = passthrough")
    try:
        config = msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong_value(str(error), origins) from error
    _refuse_misspelt(config, origins["kernel"])
    return config, origins


def home_of(config: Config) -> Path:
    """The data directory, not created yet; that of `passthrough` lies in it, so that its kernel is none for others."""
    home = Path(config.home).expanduser() if config.home else _default_home()
    return home / "passthrough" if config.kernel == "passthrough" else home


def socket_of(config: Config) -> Path:
    """The kernel's socket: what `kernel` names, else the one in the data directory."""
    if is_url(config.kernel):
        raise ConfigError(
            f'kernel = "{config.kernel}" tells no socket; a kernel cannot be served at an URL',
            fix="unset AIOS_KERNEL; aios serve --http 127.0.0.1:8400",
        )
    if config.kernel not in _MODES:
        return Path(config.kernel.removeprefix("unix://")).expanduser()
    return home_of(config) / "run" / "kernel.sock"


def policy_of(config: Config) -> Path:
    """The policy file of access, which need not exist unless the configuration names it."""
    return home_of(config) / Path(config.access or "access.toml").expanduser()


def is_url(kernel: str) -> bool:
    """Whether `kernel` names an HTTP front (or what is mistaken for one) rather than a socket."""
    return "://" in kernel and not kernel.startswith("unix://")


def token_file_of(config: Config) -> Path:
    """Where the kernel leaves the user's token, beside its socket."""
    return socket_of(config).parent / "token"


def _default_home() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "aios"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "aios"


def _from_file(cwd: Path) -> tuple[dict[str, Any], dict[str, Origin]]:
    for folder in (cwd, *cwd.parents):
        path = folder / "aios.toml"
        if path.is_file():
            try:
                values = tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise ConfigError(f"{path} cannot be read: {error}", fix=f"edit {path}") from error
            _refuse_unknown(values, str(path))
            return values, dict.fromkeys(values, str(path))
    return {}, {}


_NOT_SETTINGS = {"data", "failpoints", "parent", "parent_options"}
"""`AIOS_*` variables of the evals, the tests and the adapters that are no settings of the kernel."""


def _from_environment() -> tuple[dict[str, Any], dict[str, Origin]]:
    values: dict[str, Any] = {}
    for name, text in os.environ.items():
        key = name.removeprefix("AIOS_").lower()
        if not name.startswith("AIOS_") or key in _NOT_SETTINGS:
            continue
        _refuse_unknown({key: text}, name)
        values[key] = _parse_tables(key, text)
    return values, {key: f"AIOS_{key.upper()}" for key in values}


def _parse_tables(key: str, text: str) -> Any:
    """Tables are written as JSON in the environment; everything else is taken as it stands."""
    if not isinstance(getattr(Config(), key), dict | msgspec.Struct):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"AIOS_{key.upper()} is not JSON: {error}", fix=f"unset AIOS_{key.upper()}") from error


def _from_flags(flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Origin]]:
    given = {key: value for key, value in flags.items() if value is not None}
    _refuse_unknown(given, "a flag")
    return given, dict.fromkeys(given, "flag")


def _refuse_unknown(values: Mapping[str, Any], where: str) -> None:
    for key in values:
        if key not in Config.__struct_fields__:
            near = difflib.get_close_matches(key, Config.__struct_fields__, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(Config.__struct_fields__)}"
            raise ConfigError(f'unknown configuration key "{key}" ({where}); {hint}', fix=_mend(where))


def _refuse_misspelt(config: Config, origin: Origin) -> None:
    """A bare word is a mistake rather than a socket in the working directory, unless it is one or says `.sock`."""
    word = config.kernel
    if word in _MODES or "/" in word or word.endswith(".sock") or Path(word).exists():
        return
    near = difflib.get_close_matches(word.lower(), [mode for mode in _MODES if mode], n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(mode for mode in _MODES if mode)}"
    raise ConfigError(
        f'kernel = "{word}" ({origin}) is neither a mode, nor a path, nor an URL; {hint}',
        fix=f"{'correct it' if origin == 'flag' else _mend(origin)}; a socket of that name here is ./{word}",
    )


def _wrong_value(problem: str, origins: Mapping[str, Origin]) -> ConfigError:
    """The error of a value that does not fit its key, and where that value stands."""
    reason, _, path = problem.partition(" - at `$.")
    key = re.split(r"\W", path, maxsplit=1)[0]
    origin = origins.get(key, "")
    where = f"{path.removesuffix('`')} ({origin}): " if origin else ""
    return ConfigError(f"the configuration is wrong: {where}{reason}", fix=_mend(origin))


def _mend(origin: Origin) -> str:
    """How to get at a setting that stands there; `aios config show` would only fail as well."""
    if origin.startswith("AIOS_"):
        return f"unset {origin}, or correct it"
    return f"edit {origin}" if origin.endswith(".toml") else "aios serve --help"
