"""The models: shapes of published ones with random weights, made on the device itself.

What a step costs depends on the shapes; what the models say means nothing. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aios_evals.schedule.cost import Model


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's configuration in transformers; `small` replaces sizes for a machine without a GPU."""

    name: str
    architecture: str
    sizes: dict[str, Any]
    small: dict[str, Any]

    def config(self, *, tiny: bool, layers: int | None = None) -> Any:
        """The configuration, with fewer layers if so asked."""
        import transformers

        values = {**self.sizes, **(self.small if tiny else {})}
        if layers is not None:
            values["num_hidden_layers"] = min(layers, values["num_hidden_layers"])
        made: Any = getattr(transformers, f"{self.architecture}Config")
        # A wider initialisation than the usual 0.02 makes the logits spread about as those of a trained model.
        return made(bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.05, **values)

    def build(self, config: Any, device: Any, dtype: Any) -> Any:
        """A model with random weights on the device, the same each time."""
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
            torch.manual_seed(20_261_127)
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        return model.eval()


_SMALL = {"vocab_size": 8192, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SHAPES = (
    Shape(
        "llama-3.1-8b",
        "Llama",
        {
            "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        },
        {**_SMALL, "num_attention_heads": 8, "num_key_value_heads": 2},
    ),
    Shape(
        "qwen2.5-7b",
        "Qwen2",
        {
            "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 131_072,
        },
        {**_SMALL, "hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1},
    ),
    Shape(
        "qwen3-30b-a3b",
        "Qwen3Moe",
        {
            "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
            "max_position_embeddings": 131_072,
        },
        {
            **_SMALL, "moe_intermediate_size": 32, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
            "num_experts": 8, "num_experts_per_tok": 2,
        },
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a model decides its limits.

    Attributes:
        body: parameters that every token passes, without embedding, head and experts.
        head: of the last product.
        expert: of all experts of all layers.
        experts: in a layer; 0: none.
        chosen: of them by a token.
    """

    body: int
    head: int
    expert: int
    experts: int
    chosen: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int

    @classmethod
    def of(cls, model: Any) -> Facts:
        """Counted from the weights."""
        config = model.config
        tables = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
        parameters = [(name, p) for name, p in model.named_parameters() if id(p) not in tables]
        expert = sum(p.numel() for name, p in parameters if ".experts." in name)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            body=sum(p.numel() for _, p in parameters) - expert,
            head=model.get_output_embeddings().weight.numel(),
            expert=expert,
            experts=getattr(config, "num_experts", 0) if expert else 0,
            chosen=getattr(config, "num_experts_per_tok", 0) if expert else 0,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=dim,
            element_bytes=next(model.parameters()).element_size(),
        )

    @property
    def active(self) -> float:
        """Parameters that a token passes, the head not counted."""
        return self.body + (self.expert * self.chosen / self.experts if self.experts else 0)

    @property
    def kv_bytes(self) -> int:
        """Of a token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes

    def prefill_flops(self, tokens: int) -> float:
        """Of a prompt without a past; logits of its last token only."""
        return 2 * self.active * tokens + 2 * self.head + 2 * self.layers * self.heads * self.head_dim * tokens**2

    def decode_bytes(self, batch: int, context: float) -> float:
        """That one step must read: the weights that some token needs, and all KV. Experts are chosen at random."""
        touched = 1 - (1 - self.chosen / self.experts) ** batch if self.experts else 0.0
        weights = (self.body + self.head + self.expert * touched) * self.element_bytes
        return weights + batch * context * self.kv_bytes

    def model(self, name: str) -> Model:
        """As the lower bounds of `schedule.cost` want it: experts that no token chose cost nothing."""
        active = self.active + self.head
        return Model(name, active, self.layers, self.heads, self.kv_heads, self.head_dim, self.element_bytes)
