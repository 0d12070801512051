"""The baseline as a server on loopback, so that unmodified frameworks reach it as they would reach any other.

`python -m aios_evals.baseline.server MODEL [--forward URL]` prints its URL and serves `POST /v1/chat/completions`.
A client's API key names its replay: `PUT /replay/KEY` gives the texts of its answers in order, `GET /replay/KEY` the
model's own greedy choices. With `--forward` another OpenAI-compatible server does the work: it is asked for as many
tokens as the recorded answer has (`max_tokens`, `ignore_eos`), and the recorded text takes the place of its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aios_evals.baseline.generate import Choices, LockedGenerate, load_codec
from aios_kernel.errors import AiosError
from aios_kernel.openai_wire import ChatExchange, error_reply
from aios_kernel.syscalls import LlmChat, LlmResult, Usage


@dataclass(slots=True)
class Replay:
    """The recorded answers of one client and what the model would have said."""

    texts: list[str]
    choices: dict[int, Choices] = field(default_factory=dict[int, Choices])


class Baseline:
    """The application. `forward` is the base URL of another server, or None for `generate` behind a lock."""

    def __init__(self, model: Path, forward: str | None) -> None:
        self._replays: dict[str, Replay] = {}
        self._codec = load_codec(model)
        self._generate = None if forward else LockedGenerate.load(model)
        self._client = httpx.AsyncClient(base_url=forward, timeout=None) if forward else None
        self._tokens = {"tokens_computed": 0, "tokens_cached": 0}

    def app(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/replay/{key}", self._put, methods=["PUT"]),
                Route("/replay/{key}", self._get, methods=["GET"]),
                Route("/stats", self._stats, methods=["GET"]),
            ]
        )

    async def _put(self, request: Request) -> Response:
        self._replays[request.path_params["key"]] = Replay(msgspec.json.decode(await request.body(), type=list[str]))
        return JSONResponse({})

    async def _get(self, request: Request) -> Response:
        choices = self._replays[request.path_params["key"]].choices
        return JSONResponse({str(n): {"argmax": c.argmax, "margin": c.margin} for n, c in choices.items()})

    async def _stats(self, request: Request) -> Response:
        if self._generate is not None:
            self._tokens["tokens_computed"] = self._generate.tokens_computed
        return JSONResponse(self._tokens)

    async def _chat(self, request: Request) -> Response:
        body: dict[str, Any] = msgspec.json.decode(await request.body())
        try:
            exchange = ChatExchange(body)
            result = await self._answer(exchange.call, body, request.headers.get("authorization", ""))
        except AiosError as error:
            reply = error_reply(error)
            return JSONResponse(reply.body, reply.status)
        return JSONResponse(exchange.reply(result))

    async def _answer(self, call: LlmChat, body: dict[str, Any], authorization: str) -> LlmResult:
        replay = self._replays.get(authorization.removeprefix("Bearer "))
        number = sum(message.role == "assistant" for message in call.messages)
        text = replay.texts[number] if replay is not None else None
        if self._generate is None:
            return await self._forwarded(call, body, text)
        result, choices = await asyncio.to_thread(self._generate.answer, call, text)
        if replay is not None:
            replay.choices[number] = choices
        return result

    async def _forwarded(self, call: LlmChat, body: dict[str, Any], text: str | None) -> LlmResult:
        assert self._client is not None
        tokens = self._codec.encode(text or "")
        if text is not None:
            body = body | {"max_tokens": len(tokens) + 1, "ignore_eos": True}
        reply = await self._client.post("chat/completions", json=body)
        reply.raise_for_status()
        usage = reply.json()["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self._tokens["tokens_cached"] += cached
        self._tokens["tokens_computed"] += usage["prompt_tokens"] - cached + usage["completion_tokens"]
        stream = self._codec.stream(call)
        pieces = [*(stream.push(token) for token in tokens), stream.finish()]
        return LlmResult(
            model=body["model"],
            text="".join(piece.text for piece in pieces),
            tool_calls=[tool_call for piece in pieces for tool_call in piece.tool_calls],
            usage=Usage(usage["prompt_tokens"], cached, usage["completion_tokens"]),
        )


async def _serve(model: Path, forward: str | None) -> None:
    baseline = await asyncio.to_thread(Baseline, model, forward)
    config = uvicorn.Config(baseline.app(), host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    sock = config.bind_socket()
    sock.listen(config.backlog)  # whoever reads the address may connect at once
    sys.stdout.write(f"http://127.0.0.1:{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    await uvicorn.Server(config).serve([sock])


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default the library's choice")
    parser.add_argument("--forward", help="base URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    options = parser.parse_args()
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    asyncio.run(_serve(options.model, options.forward))


if __name__ == "__main__":
    main()
