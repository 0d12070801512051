"""docs/engines.md says what the engines' flags say, and a GGUF file is served end to end."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import transformers
from typer.testing import CliRunner

from aios_adapters.cli import running
from aios_adapters.cli import settings as doctor
from aios_adapters.cli.app import app
from aios_kernel.engine.fake import fake_model
from aios_kernel.engine.llamacpp import engine as llamacpp
from aios_kernel.engine.llamacpp import library
from aios_kernel.engine.load import DEMO
from aios_kernel.engine.openai.engine import OpenAIEngine
from aios_kernel.engine.openai.servers import Servers
from aios_kernel.engine.protocol import Capabilities
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.engine.vllm.engine import VllmEngine
from aios_kernel.engine.vllm.inprocess import engine as inprocess
from aios_kernel.engine.vllm.inprocess import hooks
from aios_kernel.plugins import Plugins
from aios_kernel.scheduler.settings import ServerHints

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "engines.md").read_text()


def flags() -> dict[str, Capabilities]:
    """What each engine offers."""
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    torch_engine = TorchEngine(transformers.LlamaForCausalLM(config), kv_tokens=64)
    child: Any = None
    return {
        "torch": torch_engine.capabilities,
        "llamacpp": llamacpp.OFFERED,
        "vllm-inprocess": inprocess.OFFERED,
        "vllm": VllmEngine(Servers([]), "m", child, slots=1, hints=ServerHints()).capabilities,
        "openai": OpenAIEngine(Servers([]), "m", slots=1).capabilities,
        "fake": fake_model().engine.capabilities,
    }


def test_the_table_says_what_the_flags_say() -> None:
    header, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("| engine") or line.startswith("| `")
    ]
    columns, offered = header[2:], flags()
    booleans = {name for name, value in vars_of(Capabilities()).items() if value is False} - {"callers"}
    assert set(columns) == booleans
    assert {row[0].strip("`") for row in rows} == offered.keys() == Plugins().named("aios_kernel_engines").keys()
    for row in rows:
        said = {column: cell == "yes" for column, cell in zip(columns, row[2:], strict=True)}
        caps = vars_of(offered[row[0].strip("`")])
        assert said == {column: caps[column] for column in columns}, row[0]


def vars_of(caps: Capabilities) -> dict[str, Any]:
    return {name: getattr(caps, name) for name in caps.__dataclass_fields__}


def test_the_doctor_tells_which_engines_are_there() -> None:
    assert doctor.ENGINES["llamacpp"][1] == library.TESTED
    assert doctor.ENGINES["vllm-inprocess"][1] == hooks.TESTED
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    lines = {row["what"]: row for row in told if row["what"].startswith("engine ")}
    assert lines.keys() == {f"engine {name}" for name in ("llamacpp", "vllm-inprocess", "openai", "vllm")}
    assert all(row["ok"] for row in lines.values())


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        (("llamacpp", None, "x.gguf"), "llamacpp:x.gguf"),
        (("vllm", "/models/x", None), "vllm:/models/x"),
        (("fake", "fake", None), "fake"),
        (("openai", "openai:NAME", None), "openai:NAME"),
        (("torch", None, None), "torch:demo"),
        ((None, "demo", None), "demo"),
        ((None, None, None), None),
    ],
)
def test_how_engine_and_model_are_named(given: tuple[Any, Any, Any], spec: str | None, tmp_path: Path) -> None:
    assert running._spec(*given) == spec


def test_what_is_named_twice_or_for_another_engine(tmp_path: Path) -> None:
    for arguments in (["demo", "--model", "fake"], ["fake", "--tensor-parallel", "4"]):
        refused = CliRunner().invoke(app, ["serve", *arguments, "--home", str(tmp_path)])
        assert refused.exit_code == 2, refused.output
        assert "--engine vllm" in refused.output or "once" in refused.output


@pytest.fixture
def served(tmp_path: Path) -> Generator[dict[str, str]]:
    """The demo model as a quantised GGUF, its tokenizer beside it, behind `aios serve`."""
    pytest.importorskip("llama_cpp", reason="needs aios-kernel[llamacpp]: make test-llamacpp")
    folder = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(DEMO / name, folder)
    converter = runpy.run_path(str(ROOT / "evals/src/aios_evals/engine_bench/workers/gguf_file.py"))
    converter["write"](folder, folder / "demo.gguf", "q8_0")
    environment = {**os.environ, "AIOS_HOME": str(tmp_path / "home"), "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact"}
    command = [sys.executable, "-c", "from aios_adapters.cli import main; main()", "serve", "--engine", "llamacpp"]
    command += ["--model", str(folder / "demo.gguf"), "--kv-tokens", "4096", "--http", "127.0.0.1:0"]
    kernel = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert kernel.stdout is not None
    line = kernel.stdout.readline()
    url = re.search(r"http://\S+/v1", line)
    assert url, line
    yield {"url": url[0].rstrip(";"), "token": (tmp_path / "home" / "run" / "token").read_text()}
    kernel.send_signal(signal.SIGINT)
    kernel.wait(20)
    kernel.stdout.close()


def test_a_llamacpp_gguf_is_served_with_tools_and_streams(served: dict[str, str]) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=served["url"], api_key=served["token"]) as client:
        parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
        tools: Any = [{"type": "function", "function": {"name": "calculator", "parameters": parameters}}]
        messages: Any = [{"role": "user", "content": "What is 12 * 7?"}]
        asked = client.chat.completions.create(
            model="demo", messages=messages, tools=tools, tool_choice="required", temperature=0, max_tokens=100
        )
        calls = asked.choices[0].message.tool_calls
        assert calls
        assert "expression" in json.loads(calls[0].function.arguments)
        chunks = list(client.chat.completions.create(model="demo", messages=messages, max_tokens=20, stream=True))
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        whole = client.chat.completions.create(model="demo", messages=messages, max_tokens=20)
        assert streamed == whole.choices[0].message.content
        assert streamed
        assert whole.usage.completion_tokens > 0
