"""OpenAI's wire format on one side, the ABI on the other. Standard library and msgspec only.

`ChatExchange`, `ResponsesExchange` and `EmbeddingsExchange` read a request body and write its answer, whole or as
server-sent events. Fields are read, or accepted without effect (`CHAT_INERT`, `RESPONSES_INERT`), or refused by name.
"""

from aios_kernel.openai_wire.chat_reply import ChatExchange
from aios_kernel.openai_wire.chat_request import CHAT_INERT
from aios_kernel.openai_wire.embeddings import EmbeddingsExchange
from aios_kernel.openai_wire.endpoints import EMBEDDINGS_PATH, EXCHANGES, MODELS_PATH
from aios_kernel.openai_wire.error_reply import ErrorReply, error_object, error_reply, status_of
from aios_kernel.openai_wire.exchange import Exchange
from aios_kernel.openai_wire.models import model_list, model_named
from aios_kernel.openai_wire.openapi import description
from aios_kernel.openai_wire.parts import chat_messages, chat_schema, chat_tool_choice, chat_tools
from aios_kernel.openai_wire.responses_reply import ResponsesExchange
from aios_kernel.openai_wire.responses_request import RESPONSES_INERT

__all__ = [
    "CHAT_INERT",
    "EMBEDDINGS_PATH",
    "EXCHANGES",
    "MODELS_PATH",
    "RESPONSES_INERT",
    "ChatExchange",
    "EmbeddingsExchange",
    "ErrorReply",
    "Exchange",
    "ResponsesExchange",
    "chat_messages",
    "chat_schema",
    "chat_tool_choice",
    "chat_tools",
    "description",
    "error_object",
    "error_reply",
    "model_list",
    "model_named",
    "status_of",
]
