"""The tools file: what it says, what is wrong with it, and the Python functions that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_kernel.config import Config
from aios_kernel.errors import ConfigError
from aios_kernel.managers import build_managers
from aios_kernel.plugins import Plugins
from aios_kernel.syscalls import ToolInvoke
from aios_kernel.tools.file import ToolsFile, read_tools

WHOLE = """
[commands.grep]
argv = ["grep", "--", "{pattern}", "{file}"]
description = "Find lines."
parameters = {type = "object", properties = {pattern = {type = "string"}, file = {type = "string"}}}
isolation = "sandbox"
effects = "idempotent"
timeout_s = 5
retry = {attempts = 3, wait_s = 0.1}

[python.weather]
function = "weather.tools:current"
max_running = 2
exclusive = "station"

[mcp.files]
command = ["mcp-server-files", "/srv"]
env = ["HOME"]
tools.read = {effects = "idempotent", untrusted = true}

[mcp.web]
url = "http://127.0.0.1:9000/mcp"

[local.deploy]
exclusive = "cluster"
parameters = {type = "object", required = ["version"]}
"""


def read(home: Path, text: str) -> ToolsFile:
    (home / "tools.toml").write_text(text)
    return read_tools(Config(home=str(home)))


def test_all_sections(tmp_path: Path) -> None:
    file = read(tmp_path, WHOLE)
    grep = file.commands["grep"]
    assert (grep.argv[2], grep.isolation, grep.effects, grep.timeout_s) == ("{pattern}", "sandbox", "idempotent", 5)
    assert (grep.retry.attempts, grep.retry.wait_s, grep.retry.backoff) == (3, 0.1, 2.0)
    assert (file.python["weather"].max_running, file.python["weather"].exclusive) == (2, "station")
    assert (file.python["weather"].effects, file.python["weather"].untrusted) == ("once", False)
    assert file.mcp["web"].untrusted
    assert file.mcp["files"].tools["read"].effects == "idempotent"
    assert file.local["deploy"].parameters["required"] == ["version"]


def test_none_is_fine_unless_it_was_named(tmp_path: Path) -> None:
    assert read_tools(Config(home=str(tmp_path))) == ToolsFile()
    with pytest.raises(ConfigError, match="there is no tools file"):
        read_tools(Config(home=str(tmp_path), tools="mine.toml"))
    (tmp_path / "mine.toml").write_text(WHOLE)
    assert read_tools(Config(home=str(tmp_path), tools="mine.toml")).commands
    assert read_tools(Config(home="/nowhere", tools=str(tmp_path / "mine.toml"))).commands


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[python.x]\nfunction = 'a:b'\ntimout_s = 3", r'python\.x: .*timout_s.*did you mean "timeout_s"'),
        ("[pyton.x]\nfunction = 'a:b'", r'pyton: .*did you mean "python"'),
        ("[python.x]\nfunction = 'a.b'", r"python\.x\.function: "),
        ("[python.x]", r"python\..*function"),
        ("[python.x]\nfunction = 'a:b'\ntimeout_s = 0", r"timeout_s: "),
        ("[python.x]\nfunction = 'a:b'\nmax_running = 0", r"max_running: "),
        ("[python.x]\nfunction = 'a:b'\neffects = 'twice'", r"effects: "),
        ("[python.x]\nfunction = 'a:b'\nretry = {attempts = 0}", r"python\.x\.retry\.attempts: "),
        ("[python.x]\nfunction = 'a:b'\neffects = 'queryable'", r"python\.x: `status`"),
        ("[commands.x]\nargv = []", r"commands\.x\.argv: "),
        ("[commands.x]\nargv = 'rm -rf {x}'", r"commands\.x\.argv: "),
        ("[mcp.x]", r"mcp\.x: it needs either"),
        ("[mcp.x]\nurl = 'http://127.0.0.1/'\ncommand = ['x']", r"mcp\.x: it needs either"),
        ("[mcp", "cannot be read"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read(tmp_path, text)
    assert "tools.toml" in str(caught.value)


MODULE = '''
from __future__ import annotations

def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    More that the model does not need.
    """
    return a + b

def odd(a: undefined_name):
    pass

value = 3
'''


async def test_a_function_is_hosted_with_a_schema_of_its_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sums.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tools.toml").write_text("[python.add]\nfunction = 'sums:add'\nuntrusted = true")
    managers = build_managers(Config(home=str(tmp_path), embedder="hash", vectors="exact"), Plugins())
    try:
        (spec,) = [spec for spec in managers.tools.specs() if spec.name == "add"]
        assert spec.description == "Add two numbers."
        assert spec.parameters["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
        assert spec.parameters["required"] == ["a"]
        answer = await managers.tools.call(ToolInvoke(name="add", arguments='{"a": 3}'))
        assert (answer.content, answer.untrusted) == ("5", True)
    finally:
        await managers.close()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("function = 'no_such_module:add'", "python.add: no_such_module:add cannot be imported"),
        ("function = 'faults:missing'", "cannot be imported"),
        ("function = 'faults:value'", "is no function"),
        ("function = 'faults:odd'", "give `parameters`"),
    ],
)
def test_a_function_that_cannot_be_hosted_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, says: str
) -> None:
    (tmp_path / "faults.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tools.toml").write_text(f"[python.add]\n{entry}")
    with pytest.raises(ConfigError) as caught:
        build_managers(
            Config(home=str(tmp_path / "home"), tools=str(tmp_path / "tools.toml"), embedder="hash"), Plugins()
        )
    assert says in str(caught.value)
