"""`KernelEmbeddings`: LangChain embeddings by the kernel's embedder."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from aios_adapter_langchain.identity import FRAMEWORK
from aios_adapters import Scope
from aios_adapters._ambient import ambient
from aios_kernel.syscalls import Embeddings as Vectors
from aios_kernel.syscalls import LlmEmbed


class KernelEmbeddings(Embeddings):
    """Embed texts in the kernel, together with those of all other agents.

    Args:
        model: the served model's name, to embed with it; None: the kernel's embedder.
        agent: who asks outside of every agent.
    """

    def __init__(self, model: str | None = None, *, agent: str = "langchain") -> None:
        self._model = model
        self._agent = agent

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector a text, all of one length."""
        return self._scope().call(self._ask(texts), Vectors).vectors if texts else []

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Like `embed_documents`."""
        return (await self._scope().acall(self._ask(texts), Vectors)).vectors if texts else []

    async def aembed_query(self, text: str) -> list[float]:
        """Like `embed_query`."""
        return (await self.aembed_documents([text]))[0]

    def _ask(self, texts: list[str]) -> LlmEmbed:
        return LlmEmbed(texts=[*texts], model=self._model)

    def _scope(self) -> Scope:
        return ambient(self._agent, FRAMEWORK)
