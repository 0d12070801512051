"""OpenAI's LLM class: its own code runs, with a client whose model is the kernel's.

So everything that the class does around a call (parameters, retries, structured output, its types in `raw`) stays as
it is, and no key is asked for.
"""

from __future__ import annotations

from typing import Any

from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.llms.openai import base

from aios_adapter_llamaindex.openai_client import AsyncKernelClient, KernelClient
from aios_adapter_llamaindex.request import chat_call
from aios_adapters import Scope
from aios_adapters.patching import Patcher
from aios_kernel.syscalls import LlmResult


def install(patcher: Patcher) -> None:
    """Replace the client inside a scope, and let model names that OpenAI does not know pass."""
    clients = {"_get_client": _client, "_get_aclient": _aclient, "_use_chat_completions": _use_chat}
    patcher.leaves(base.OpenAI, clients, late="__pydantic_init_subclass__", kind="detail")
    patcher.method(base, "openai_modelname_to_contextsize", _context_size, kind="detail")
    patcher.method(base, "is_chat_model", _is_chat_model, kind="detail")


def install_responses(patcher: Patcher) -> None:
    """The class of the Responses API: its leaves are those of any LLM; structured output goes its own way."""
    from llama_index.llms.openai import responses

    structured = {"structured_predict": _structured, "astructured_predict": _astructured}
    patcher.leaves(responses.OpenAIResponses, structured, late="__pydantic_init_subclass__", kind="detail")
    patcher.method(responses, "openai_modelname_to_contextsize", _context_size, kind="detail")


def _context_size(scope: Scope, original: Any, *args: Any, **kwargs: Any) -> int:
    try:
        return original(*args, **kwargs)
    except ValueError:  # not a model of OpenAI's, or not any more
        return DEFAULT_CONTEXT_WINDOW


def _is_chat_model(scope: Scope, original: Any, *args: Any, **kwargs: Any) -> bool:
    return True


def _client(scope: Scope, original: Any, llm: base.OpenAI) -> KernelClient:
    return KernelClient(scope, _timeout_s(llm))


def _aclient(scope: Scope, original: Any, llm: base.OpenAI) -> AsyncKernelClient:
    return AsyncKernelClient(scope, _timeout_s(llm))


def _timeout_s(llm: base.OpenAI) -> float | None:
    """The time limit that the user chose. The class's default is made for OpenAI's servers, not for a queue here."""
    return None if llm.timeout == type(llm).model_fields["timeout"].default else llm.timeout


def _use_chat(scope: Scope, original: Any, llm: base.OpenAI, /, kwargs: dict[str, Any]) -> bool:
    kwargs.pop("use_chat_completions", None)
    return True


# --- the Responses API's structured output --------------------------------------------------------------------------


def _structured(
    scope: Scope, original: Any, llm: Any, /, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
) -> Any:
    return _parsed(output_cls, scope.chat(_structured_call(llm, output_cls, prompt, llm_kwargs, prompt_args)))


async def _astructured(
    scope: Scope, original: Any, llm: Any, /, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any
) -> Any:
    return _parsed(output_cls, await scope.achat(_structured_call(llm, output_cls, prompt, llm_kwargs, prompt_args)))


def _structured_call(llm: Any, output_cls: Any, prompt: Any, llm_kwargs: Any, prompt_args: dict[str, Any]) -> Any:
    messages = prompt.format_messages(**prompt_args)
    return chat_call(llm, messages, {**(llm_kwargs or {}), "tools": None, "response_format": output_cls})


def _parsed(output_cls: Any, result: LlmResult) -> Any:
    return output_cls.model_validate_json(result.text)
