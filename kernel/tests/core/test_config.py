"""Settings that cannot be are refused with the name of the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_kernel import config
from aios_kernel.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KV_TOKENS", "-1"),
        ("KV_TOKENS", "8k"),
        ("MAX_OPEN_CALLS", "0"),
        ("TOOL_TIMEOUT_S", "nan"),
        ("GRACE_S", "-0.5"),
        ("STRICT", "perhaps"),
        ("MODELS", "[]"),
        ("MODELS", "{"),
    ],
)
def test_impossible_values_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str) -> None:
    monkeypatch.setenv(f"AIOS_{name}", text)
    with pytest.raises(ConfigError, match=name.lower() if name != "MODELS" or text != "{" else name):
        config.load(cwd=tmp_path)


def test_an_unknown_variable_is_named_with_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIOS_POLCY", "fifo")
    with pytest.raises(ConfigError, match='"policy"'):
        config.load(cwd=tmp_path)


def test_values_are_read_as_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIOS_KV_TOKENS", "4096")
    monkeypatch.setenv("AIOS_STRICT", "true")
    monkeypatch.setenv("AIOS_POLICY_OPTIONS", '{"quantum": 4, "always_swap": true}')
    loaded = config.load(cwd=tmp_path)
    assert (loaded.kv_tokens, loaded.strict) == (4096, True)
    assert loaded.policy_options == {"quantum": 4, "always_swap": True}


def test_what_is_wrong_is_said_with_where_it_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "aios.toml"
    file.write_text("kv_tokens = true\n")
    with pytest.raises(ConfigError) as caught:
        config.load(cwd=tmp_path)
    assert f"kv_tokens ({file}): Expected `int`" in caught.value.message
    assert caught.value.fix == f"edit {file}"
    monkeypatch.setenv("AIOS_KV_TOKENS", "8k")
    with pytest.raises(ConfigError) as caught:
        config.load(cwd=tmp_path)
    assert "kv_tokens (AIOS_KV_TOKENS): Expected `int`" in caught.value.message
    assert caught.value.fix == "unset AIOS_KV_TOKENS, or correct it"
    with pytest.raises(ConfigError, match="there are: kernel, home") as caught:
        config.load({"zzzz": 1}, cwd=tmp_path)
    assert caught.value.fix == "aios serve --help"
