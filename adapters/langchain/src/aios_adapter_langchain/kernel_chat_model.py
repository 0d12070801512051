"""`KernelChatModel`: the kernel's model as a LangChain chat model, for those who choose it openly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from operator import itemgetter
from typing import Any, ClassVar, Literal, NoReturn

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import Field

from aios_adapter_langchain import chat_models
from aios_adapter_langchain.identity import FRAMEWORK
from aios_adapters import Scope
from aios_adapters._ambient import ambient
from aios_kernel.errors import Unsupported

Method = Literal["json_schema", "json_mode", "function_calling"]


class KernelChatModel(BaseChatModel):
    """Asks the kernel, in the name of the agent that is on; outside of every agent, in that of `agent`."""

    __aios_direct__: ClassVar[bool] = True

    model: str | None = None
    """Of the models that the kernel serves; None: its default."""
    agent: str = "langchain"
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    timeout: float | None = None
    """Seconds that a call may take."""
    max_retries: int | None = None
    """Accepted for other models' sake: the kernel's queue does not lose calls."""
    stream_usage: bool = True

    model_config = {"populate_by_name": True}

    @property
    def _llm_type(self) -> str:
        return "aios"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.model, "temperature": self.temperature, "seed": self.seed}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "aios"
        params.setdefault("ls_model_name", kwargs.get("model") or self.model or "default")
        return params

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return chat_models.generate(self._scope(), _unused, self, messages, stop, run_manager, **kwargs)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await chat_models.agenerate(self._scope(), _unused, self, messages, stop, run_manager, **kwargs)

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield from chat_models.stream(self._scope(), _unused, self, messages, stop, run_manager, **kwargs)

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        source = chat_models.astream(self._scope(), _unused, self, messages, stop, run_manager, **kwargs)
        async with aclosing(source) as chunks:
            async for chunk in chunks:
                yield chunk

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools; `tool_choice` is auto, none, required (or any), or a tool's name."""
        return self.bind(tools=[*tools], tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Method = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as instances of a class or dictionaries of a schema, to which the kernel holds the model.

        `json_mode` holds it to some JSON object only; `function_calling` offers the schema as a tool.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        kwargs.pop("strict", None)  # the schema always binds here
        if kwargs:
            raise Unsupported(f"{next(iter(kwargs))} is not supported by with_structured_output", fix="leave it out")
        shape = {"type": "json_object"} if method == "json_mode" else convert_to_json_schema(schema)
        told = {"kwargs": {"method": method}, "schema": schema}
        llm = self.bind(response_format=shape, ls_structured_output_format=told)
        parser = _parser(schema)
        return _with_raw(llm, parser) if include_raw else llm | parser

    def get_token_ids(self, text: str) -> list[int]:
        """Not offered: the model's tokenizer lives in the kernel."""
        raise Unsupported("tokens cannot be counted here", fix="read usage_metadata of an answer")

    def _scope(self) -> Scope:
        return ambient(self.agent, FRAMEWORK)


def _parser(schema: Any) -> Any:
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    return PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()


def _with_raw(llm: Runnable[Any, AIMessage], parser: Any) -> Runnable[Any, Any]:
    """`raw`, `parsed` and `parsing_error`, as every LangChain model gives them."""
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=_none)
    fallback = parsed.with_fallbacks([RunnablePassthrough.assign(parsed=_none)], exception_key="parsing_error")
    return RunnableMap(raw=llm) | fallback


def _none(_: Any) -> None:
    return None


def _unused(*args: Any, **kwargs: Any) -> NoReturn:
    """There is no original behind this model."""
    raise NotImplementedError
