"""The `llm.embed` syscall: by the embedder of the memory, or by the served model when the call names it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aios_kernel import errors
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.config import Config
from aios_kernel.scheduler.dispatcher import Dispatcher
from aios_kernel.syscalls import Embeddings, LlmEmbed, Usage


class EmbedService:
    """Chooses who embeds.

    Args:
        model: the served model.
        config: its `models` may map a name onto the served model's.
        dispatcher: owns the model's engine.
        embed_texts: the embedder's way: texts to `Embeddings`.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: Config,
        dispatcher: Dispatcher,
        embed_texts: Callable[[list[str]], Awaitable[Embeddings]],
    ) -> None:
        self._model = model
        self._names = config.models
        self._dispatcher = dispatcher
        self._embed_texts = embed_texts

    async def embed(self, call: LlmEmbed) -> Embeddings:
        """Embed texts.

        Raises:
            InvalidRequest: there is no text, or an empty one.
            ContextTooLong: a text exceeds the model's window.
            Unsupported: the served model was named, and its engine cannot embed.
        """
        if call.model is None or self._names.get(call.model, call.model) != self._model.name:
            return await self._embed_texts(call.texts)
        if not self._model.engine.capabilities.embed:
            raise errors.Unsupported(
                f"the engine of {self._model.name} cannot embed", fix="leave `model` out: the embedder does it"
            )
        tokens = await asyncio.to_thread(self._tokens, call.texts)
        vectors = await asyncio.wrap_future(self._dispatcher.embed(tokens))
        count = sum(map(len, tokens))
        return Embeddings(vectors=vectors, model=self._model.name, usage=Usage(prompt_tokens=count))

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            raise errors.InvalidRequest("there is no text to embed", fix="give at least one text")
        codec = self._model.codec
        tokens = [codec.encode(text) for text in texts]
        for number, ids in enumerate(tokens):
            if not ids:
                raise errors.InvalidRequest(f"text {number} is empty", fix="leave empty texts out")
            if len(ids) > codec.window:
                raise errors.ContextTooLong(
                    f"text {number} has {len(ids):,} tokens; the window of {self._model.name} is {codec.window:,}",
                    fix="cut it into parts, or leave `model` out: the embedder does it",
                )
        return tokens
