"""vLLM on the CPU, served directly over its own HTTP front on loopback, as the peer."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from aios_evals.contention.served import Answer
from aios_kernel.errors import EngineError

BLOCK = 32
"""Its CPU attention wants multiples of 32."""
_READY_S = 180.0
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def python_of(peers: Path) -> Path | None:
    """The interpreter of the environment that `make bench-peers` makes; None when it is not there."""
    python = peers / ".venv-vllm" / "bin" / "python"
    return python if python.exists() else None


class VllmServer:
    """See `served.Served`. It knows nothing of programs and pauses: that is the comparison.

    Args:
        python: of its environment.
        model: folder of the weights.
        pool: tokens of its KV cache.
        window: longest sequence.
        threads: of its engine.
    """

    def __init__(self, python: Path, model: Path, pool: int, window: int, threads: int) -> None:
        self._port = _free_port()
        command = [
            str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1",
            "--port", str(self._port), "--served-model-name", "m", "--skip-tokenizer-init", "--dtype", "float32",
            "--block-size", str(BLOCK), "--num-gpu-blocks-override", str(pool // BLOCK),
            "--max-model-len", str(window), "--enable-prompt-tokens-details",
        ]  # fmt: skip
        environment = {**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the server
        self._process = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._wait()
        except BaseException:  # ctrl-C too: nobody else knows of the server yet
            self.close()
            raise

    def ask(self, program: str, prompt: list[int], n_tokens: int) -> Answer:
        """See `served.Served.ask`."""
        body = {
            "model": "m", "prompt": prompt, "max_tokens": n_tokens, "min_tokens": n_tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        reply = self._post(body)
        details = reply["usage"].get("prompt_tokens_details") or {}
        return Answer(reply["choices"][0]["token_ids"], details.get("cached_tokens") or 0)

    def pause(self, program: str) -> None:
        """It is not told."""

    def resume(self, program: str, seconds: float) -> None:
        """It is not told."""

    def leave(self, program: str) -> None:
        """It is not told."""

    def counts(self) -> dict[str, int]:
        """It swaps nothing out."""
        return {"swap_tokens": 0}

    def close(self) -> None:
        """End the server and the processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if reply.status != 200:
            raise EngineError(f"vLLM answered {reply.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text)

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self._post({"model": "m", "prompt": [9] * 40, "max_tokens": 2, "ignore_eos": True, "temperature": 0})
            except OSError:
                time.sleep(0.5)
            else:
                return
        self._log.seek(0)
        tail = self._log.read()[-600:].decode(errors="replace")
        raise EngineError(f"vLLM did not come up: {tail}", fix="make bench-peers")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
