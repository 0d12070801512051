"""What moves in MetaGPT fails loudly: an agent never runs past the kernel. (Its kin: tests/test_versions.py.)"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from aios_adapters import host, plugins
from aios_kernel.errors import AdapterError

CONFIGURATION = "llm:\n  api_type: openai\n  model: gpt-4o\n  api_key: sk-of-a-test\n"


@pytest.fixture
def again(metagpt: Any) -> Generator[None]:
    """Every hooked module imported; the adapter put in anew at the end."""
    for module in host().installed["metagpt"].adapter.hooks:
        importlib.import_module(module)
    host().check()
    yield
    host().deactivate()
    host().activate()
    host().check()


@pytest.mark.usefixtures("again")
def test_every_symbol_that_moves_is_told() -> None:
    from metagpt.provider.openai_api import OpenAILLM
    from metagpt.utils.yaml_model import YamlModel

    asked = [*dict.fromkeys(host().installed["metagpt"].patcher.asked)]
    told: list[str] = []
    for owner, symbol in [*asked, (OpenAILLM, "_cons_kwargs"), (YamlModel, "read_yaml")]:
        host().deactivate()
        if symbol not in vars(owner):
            continue  # inherited: its owner is asked for as well
        before = vars(owner)[symbol]
        delattr(owner, symbol)
        inherited = hasattr(owner, symbol)
        try:
            host().activate()
            if not inherited:  # what a parent still has is hooked there
                with pytest.raises(AdapterError, match=symbol) as caught:
                    host().check()
                assert "fix:" in str(caught.value)
                told.append(symbol)
        finally:
            host().deactivate()  # while the symbol is away: what is undone is what was put in
            setattr(owner, symbol, before)
    assert {"acompletion_text", "run", "think", "act", "get_memories", "add", "_cons_kwargs", "read_yaml"} <= {*told}


@pytest.mark.parametrize(
    ("module", "symbol"),
    [
        ("metagpt.provider.base_llm", "BaseLLM"),
        ("metagpt.provider.openai_api", "OpenAILLM"),
        ("metagpt.roles.role", "Role"),
        ("metagpt.utils.yaml_model", "YamlModel"),
    ],
)
def test_a_class_that_moves_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, symbol: str) -> None:
    """MetaGPT is imported before the adapter, without the class; a file tells it of a model and a key."""
    (tmp_path / ".metagpt").mkdir()
    (tmp_path / ".metagpt" / "config2.yaml").write_text(CONFIGURATION)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METAGPT_PROJECT_ROOT", str(tmp_path))
    code = (
        f"import importlib, sys\nimport metagpt.roles\nmodule = importlib.import_module({module!r})\n"
        f"del module.{symbol}\nimport aios_adapters as aios\nfrom aios_kernel.errors import AdapterError\n"
        "try: aios.agent(lambda: 1, name='x')()\n"
        "except AdapterError as error: print(error); sys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert symbol in done.stdout
    assert "fix:" in done.stdout


def test_a_version_outside_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.0" if name == "metagpt" else real(name))
    with pytest.warns(UserWarning, match=r"metagpt 0\.9\.0 is outside the range .*fix: pip install 'metagpt>=0\.8\.2"):
        plugins._warn_outside_range(host().installed["metagpt"].adapter)
