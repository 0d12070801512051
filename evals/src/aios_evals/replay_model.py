"""The replay model: 34 M random weights and a tokenizer trained on the workloads, made on first use.

Llama shape: 8 layers, hidden 512, 8 heads, 4 KV heads, MLP 1536, vocabulary 8192, window 16,384. Its answers mean
nothing; the work it does is real, so that recorded texts forced through it cost what a model of its size costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aios_evals.workloads.trajectory import Trajectory

VOCABULARY = 8192
WINDOW = 16_384
_SEED = 20_261_120
_START, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
_TEMPLATE = """\
{%- macro header(role) %}{{ '<|im_start|>' + role + '\\n' }}{% endmacro -%}
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}
{%- if tools or system -%}
{{ header('system') }}{{ system }}
{%- if tools %}{{ '\\n\\nTools, one JSON schema a line:\\n' }}
{%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}
{{- 'Call one by <tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>' }}{% endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role != 'system' -%}
{{ header(message.role) }}{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif -%}
"""


def ensure(folder: Path, runs: Sequence[Trajectory]) -> Path:
    """The model's folder below `folder`, made if it is not there. Takes some seconds the first time."""
    corpus = [*_texts(runs)]
    digest = hashlib.sha256("\0".join([_TEMPLATE, *corpus]).encode()).hexdigest()[:12]
    target = folder / f"replay-34m-{digest}"
    if not (target / "model.safetensors").is_file():
        building = target.with_suffix(".part")
        write_tokenizer(building, corpus)
        random_model().save_pretrained(building, safe_serialization=True)
        building.rename(target)
    return target


def _texts(runs: Sequence[Trajectory]) -> Iterable[str]:
    for run in runs:
        yield run.system
        for turn in run.turns:
            yield turn.user
            for step in turn.steps:
                yield step.forced()
                yield from (call.result or "" for call in step.calls)


def write_tokenizer(folder: Path, corpus: Sequence[str]) -> None:
    """Train a tokenizer of at most `VOCABULARY` tokens, with the model's template, and save it to a folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_PAD, _START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = _TEMPLATE
    fast.model_max_length = WINDOW
    fast.save_pretrained(folder)


def random_model() -> Any:
    """The model itself, 34 M random weights in float32, the same each time."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model: Any = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=2, pad_token_id=0)
    return model.eval()
