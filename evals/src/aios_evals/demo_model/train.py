"""Trains the demo model: ``python -m aios_evals.demo_model.train --out DIR``."""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aios_evals.demo_model.attention import use_training_attention
from aios_evals.demo_model.batches import IGNORED, batches
from aios_evals.demo_model.tokenizer import BOS, END, MAX_TOKENS, PAD, build_tokenizer, token_id

#: Share of the steps, and longest conversation: copying is learnt first, and much faster, on short ones.
_CURRICULUM: Final = ((0.25, 256), (0.45, 416), (0.3, 2048))
#: Rows of the embedding: the tokens, rounded up.
_VOCABULARY: Final = 288


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result."""

    steps: int = 12_000
    tokens: int = 2048
    warmup: int = 50
    matrix_rate: float = 0.006
    other_rate: float = 3e-3
    layers: int = 4
    width: int = 160
    seed: int = 0


def build_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """A small Llama with fresh weights."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=recipe.width,
        intermediate_size=recipe.width * 14 // 5,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // 32,
        num_key_value_heads=recipe.width // 32,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    model = LlamaForCausalLM(config)
    use_training_attention(model)
    return model


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms.

    Muon needs about half the steps of AdamW here, and its own cost does not show at this size.
    """
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    other = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(inner, lr=recipe.matrix_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(other, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, recipe: Recipe) -> float:
    """Share of the learning rate: up over the warm-up, flat, and down to nothing over the last 70 %."""
    down = (recipe.steps - step) / (0.7 * recipe.steps)
    return min(1.0, (step + 1) / recipe.warmup, down)


def loss_of(model: LlamaForCausalLM, ids: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over the assistant's tokens of a batch of shape (rows, tokens)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten(), ignore_index=IGNORED)


def train(out: Path, recipe: Recipe, resume_at: int = 0) -> None:
    """Train and save; a checkpoint every 500 steps, so that the run can be stopped early.

    Args:
        out: Folder to write; with ``resume_at`` also the folder to read.
        recipe: What decides the result.
        resume_at: Go on at this step from the saved weights. The momentum starts anew, so the result differs a little.
    """
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, recipe)
    if resume_at:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict())
    optimizers = build_optimizers(model, recipe)
    base = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    started, smooth = time.monotonic(), 0.0
    model.train()
    phases = [(round(share * recipe.steps), longest) for share, longest in _CURRICULUM]
    for step, (ids, targets) in enumerate(batches(tokenizer, recipe.tokens, phases)):
        if step < resume_at:
            continue
        for optimizer, rate in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = rate * rate_at(step, recipe)
        loss = loss_of(model, ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if step == resume_at else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 0:
            wall, cpu = time.monotonic() - started, time.process_time()
            print(f"step {step} loss {smooth:.4f} wall {wall:.0f} s cpu {cpu:.0f} s", flush=True)
        if step % 500 == 499:
            save(model, tokenizer, out)
    save(model, tokenizer, out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a folder that ``from_pretrained`` loads, with bfloat16 weights."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    nn.Module.to(copy, torch.bfloat16)
    copy.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    copy.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--threads", type=int, default=1, help="more only pays on idle cores")
    parser.add_argument("--resume-at", type=int, default=0, help="go on at this step from the weights in --out")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    out = options.pop("out")
    torch.set_num_threads(options.pop("threads"))
    train(out, resume_at=options.pop("resume_at"), recipe=Recipe(**options))


if __name__ == "__main__":
    main()
