"""A GGUF file in memory: weights, sizes, and the adapters that can be laid over them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from aios_kernel.engine.llamacpp.library import TESTED, library
from aios_kernel.engine.llamacpp.peft import write_gguf
from aios_kernel.errors import ConfigError, InvalidRequest, UnknownModel, Unsupported

_HEAD = 1 << 20
_SAMPLES, _SAMPLE = 1024, 64
"""Pieces of the file, and bytes of each, that its fingerprint looks at beside its head."""
_LONGEST_VALUE = 1 << 16


class LlamaModel:
    """The weights of one GGUF file.

    Args:
        file: the GGUF.
        gpu_layers: how many layers a GPU takes, if this build of llama.cpp knows one; -1: all.

    Raises:
        ConfigError: the file is none that llama.cpp can load.
        Unsupported: the model keeps state that cannot be cut, or is no decoder.
    """

    def __init__(self, file: Path, gpu_layers: int = -1) -> None:
        self.api = library()
        settings = self.api.llama_model_default_params()
        settings.n_gpu_layers = gpu_layers
        self.handle: Any = self.api.llama_model_load_from_file(os.fsencode(file), settings)
        if not self.handle:
            raise ConfigError(
                f"llama.cpp cannot load {file}: it is damaged, or of an architecture that {TESTED} does not know",
                fix="download it again, or choose another GGUF file",
            )
        self._refuse_others(file)
        self.vocab_handle: Any = self.api.llama_model_get_vocab(self.handle)
        self.vocab = int(self.api.llama_vocab_n_tokens(self.vocab_handle))
        self.width = int(self.api.llama_model_n_embd_out(self.handle))
        self.window = int(self.api.llama_model_n_ctx_train(self.handle))
        self.digest = _digest(file)
        self._loras: dict[str, tuple[Any, str]] = {}  # with the digest of its file

    @property
    def kv_token_values(self) -> int:
        """Keys and values of one token over all layers, in numbers."""
        api, handle = self.api, self.handle
        heads = api.llama_model_n_head(handle)
        head = int(self.value(f"{self.value('general.architecture')}.attention.key_length") or 0)
        head = head or api.llama_model_n_embd(handle) // heads
        return 2 * api.llama_model_n_layer(handle) * api.llama_model_n_head_kv(handle) * head

    def value(self, key: str) -> str:
        """A value of the file's metadata as text; empty: there is none."""
        buffer = ctypes.create_string_buffer(_LONGEST_VALUE)
        length = self.api.llama_model_meta_val_str(self.handle, key.encode(), buffer, _LONGEST_VALUE)
        return buffer.value.decode(errors="replace") if length >= 0 else ""

    def load_lora(self, name: str, source: Path) -> None:
        """Load an adapter, a GGUF file or a folder in PEFT's format; the same once more changes nothing.

        Raises UnknownModel: there is no such file or folder; ConfigError: it does not fit; InvalidRequest: the name is
        taken; Unsupported: it is no plain LoRA.
        """
        if source.is_dir():
            heads = {
                "attn_q": self.api.llama_model_n_head(self.handle),
                "attn_k": self.api.llama_model_n_head_kv(self.handle),
            }
            with tempfile.TemporaryDirectory(prefix="aios-lora-") as folder:
                file = Path(folder) / "adapter.gguf"
                write_gguf(source, file, self.value("general.architecture"), heads)
                self._load_lora(name, file)
        elif source.is_file():
            self._load_lora(name, source)
        else:
            raise UnknownModel(f'the LoRA adapter "{name}" is not at {source}', fix="name a GGUF file or a folder")

    def _load_lora(self, name: str, file: Path) -> None:
        digest = _digest(file)
        if name in self._loras:
            if self._loras[name][1] != digest:
                raise InvalidRequest(
                    f'a LoRA adapter "{name}" is loaded whose weights are others', fix="choose another name"
                )
            return
        adapter = self.api.llama_adapter_lora_init(self.handle, os.fsencode(file))
        if not adapter:
            raise ConfigError(
                f'the LoRA adapter "{name}" cannot be loaded from {file}',
                fix="name an adapter of this very model",
            )
        self._loras[name] = (adapter, digest)

    def unload_lora(self, name: str) -> None:
        """Free an adapter that no context uses. Raises UnknownModel."""
        self.api.llama_adapter_lora_free(self.lora(name))
        del self._loras[name]

    @property
    def loras(self) -> list[str]:
        """Names of the adapters that are loaded."""
        return sorted(self._loras)

    def lora(self, name: str | None) -> Any:
        """The adapter of this name; None for none. Raises UnknownModel for one that is not loaded."""
        if name is not None and name not in self._loras:
            known = ", ".join(sorted(self._loras)) or "none"
            raise UnknownModel(
                f'there is no LoRA adapter "{name}"; loaded: {known}', fix=f"aios serve --lora {name}=FILE.gguf"
            )
        return None if name is None else self._loras[name][0]

    def close(self) -> None:
        """Free the weights; adapters go with them."""
        if self.handle is not None:
            self.api.llama_model_free(self.handle)
        self.handle = None

    def _refuse_others(self, file: Path) -> None:
        api, handle = self.api, self.handle
        reasons = {
            "keeps a state beside its KV, which cannot be cut back to a prefix": (
                api.llama_model_is_recurrent(handle) or api.llama_model_is_hybrid(handle)
            ),
            "has an encoder": api.llama_model_has_encoder(handle),
            "does not write from left to right": api.llama_model_is_diffusion(handle),
        }
        for reason, found in reasons.items():
            if found:
                self.api.llama_model_free(handle)
                self.handle = None
                raise Unsupported(f"{file.name} {reason}", fix="choose a decoder with attention only")


def _digest(file: Path) -> str:
    """Of the file's head, its size and pieces all over it."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        digest.update(opened.read(_HEAD))
        for place in range(_HEAD, size, max(1, size // _SAMPLES)):
            opened.seek(place)
            digest.update(opened.read(_SAMPLE))
    return digest.hexdigest()[:32]
