"""ChatOpenAI and OpenAIEmbeddings without a key.

They can be built (the OpenAI SDK's adapter sees to that). Outside of an agent a chat model says at its first call what
is missing; its own message there would blame an asynchronous key.
"""

from __future__ import annotations

import functools
from typing import Any

from aios_adapters._passthrough import passes_through
from aios_adapters.patching import Patcher


def install(patcher: Patcher) -> None:
    """Replace the check before blocking calls. Raises AdapterError when it has moved."""
    import openai
    from langchain_openai.chat_models.base import BaseChatOpenAI

    original = BaseChatOpenAI._ensure_sync_client_available  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(original)
    def check(model: Any) -> None:
        if model.client is None and model.openai_api_key is None and not passes_through():
            raise openai.OpenAIError(
                "The api_key client option must be set either by passing api_key to the client or by setting the "
                "OPENAI_API_KEY environment variable (inside a function decorated with @aios.agent none is needed)"
            )
        original(model)

    patcher.replace(BaseChatOpenAI, "_ensure_sync_client_available", check)


def install_embeddings(patcher: Patcher) -> None:
    """Give embeddings that were built without a key their blocking client, as the asynchronous one is given.

    Outside of an agent that client itself says at its first call that there is no key.
    """
    import openai
    from langchain_openai.embeddings.base import OpenAIEmbeddings

    original = OpenAIEmbeddings._ensure_sync_client_available  # pyright: ignore[reportPrivateUsage]

    @functools.wraps(original)
    def check(model: Any) -> None:
        if model.client is None and model.openai_api_key is None and not passes_through():
            model.client = openai.OpenAI(
                organization=model.openai_organization,
                base_url=model.openai_api_base,
                timeout=model.request_timeout,
                max_retries=model.max_retries,
                default_headers=model.default_headers,
                default_query=model.default_query,
            ).embeddings
        original(model)

    patcher.replace(OpenAIEmbeddings, "_ensure_sync_client_available", check)
