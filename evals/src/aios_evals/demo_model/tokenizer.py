"""The demo model's tokenizer: one token a byte, plus tokens for roles and for the pieces of a tool call."""

from pathlib import Path
from typing import Final, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aios_evals.demo_model.tools import TOOL_ARGUMENTS

BOS: Final = "<|bos|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
ASSISTANT: Final = "<|assistant|>"
TEMPLATE: Final = Path(__file__).with_name("chat_template.jinja")
#: Longest conversation, in tokens, that the model may be asked to read.
MAX_TOKENS: Final = 4096

_ROLES: Final = (PAD, BOS, END, "<|tools|>", "<|user|>", ASSISTANT, "<|tool|>", "<|other|>")
#: Each of the four tools is either on offer or not: absence is a token too, because it is hard to see otherwise.
_TOOLS: Final = tuple(f"<|{no}{tool}|>" for tool in TOOL_ARGUMENTS for no in ("", "no_"))
#: Pieces of the text `<tool_call>{"name": "lookup", "arguments": {"item": "zebra-42"}}</tool_call>`.
_PIECES: Final = (
    "<tool_call>",
    "</tool_call>",
    '"}}',
    *(f'{{"name": "{tool}", "arguments": {{"{argument}": "' for tool, argument in TOOL_ARGUMENTS.items()),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer with its chat template.

    All 256 bytes are tokens, so that any text survives and a name is read as it is spelled. Pieces of a tool call
    are ordinary tokens, because they must come back in the decoded text; roles are special ones.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (*_ROLES, *_TOOLS)])
    raw.add_tokens([AddedToken(text, special=False, normalized=False) for text in _PIECES])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = TEMPLATE.read_text()
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The id of a token, for example of `END`."""
    return cast("int", tokenizer.convert_tokens_to_ids(text))
