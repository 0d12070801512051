"""Which LoRA adapter of the served model a call asks for: by `lora`, or by a model name."""

from __future__ import annotations

from collections.abc import Mapping

from aios_kernel import errors
from aios_kernel.chat.protocol import LoadedModel
from aios_kernel.engine.protocol import LoraAdapters
from aios_kernel.syscalls import LlmChat


class Loras:
    """The adapters of a model.

    Args:
        model: that is served.
        names: model names that are mapped, to the model or to an adapter.
    """

    def __init__(self, model: LoadedModel, names: Mapping[str, str]) -> None:
        self._model = model
        self._names = names
        engine: object = model.engine
        serves = model.engine.capabilities.lora
        self._engine = engine if serves and isinstance(engine, LoraAdapters) else None

    def known(self) -> Mapping[str, int]:
        """Adapters by name, each with the tokens of KV that it takes the room of."""
        return self._engine.loras() if self._engine is not None else {}

    def of(self, call: LlmChat) -> str | None:
        """The adapter that a call asks for; a model name that is an adapter's goes before `lora`, the agent's own.

        Raises:
            Unsupported: the engine serves none.
            UnknownModel: `lora` names none that is loaded.
        """
        known = self.known()
        named = self._names.get(call.model or "", call.model)
        if named is not None and named in known:
            return named
        if call.lora is not None and call.lora not in known:
            raise self._missing(call.lora, known)
        return call.lora

    def room(self, lora: str | None) -> int:
        """Tokens of KV that the pool holds beside an adapter."""
        taken = self.known().get(lora, 0) if lora is not None else 0
        return self._model.engine.capabilities.kv_tokens - taken

    def _missing(self, name: str, known: Mapping[str, int]) -> errors.AiosError:
        if self._engine is None:
            return errors.Unsupported(
                f'the LoRA adapter "{name}" cannot be applied: the {self._model.engine.name} engine serves none',
                fix="leave lora= of the decorator out, or serve a model that has it merged: aios serve MODEL",
            )
        loaded = ", ".join(sorted(known)[:10]) or "none"
        return errors.UnknownModel(
            f'the LoRA adapter "{name}" is not loaded; loaded are: {loaded}',
            fix=f'aios serve {self._model.name} --lora {name}=PATH, or in aios.toml: [loras] {name} = "PATH"',
        )
