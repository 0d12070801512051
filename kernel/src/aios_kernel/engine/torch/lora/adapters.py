"""What an engine asks of its adapters: load them, have them in the pool for a context, lay out a forward's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aios_kernel.engine._lora_source import locate_lora
from aios_kernel.engine.torch.lora.adapter import Adapter, read_adapter
from aios_kernel.engine.torch.lora.shelf import Shelf
from aios_kernel.engine.torch.lora.table import Table
from aios_kernel.engine.torch.prefix import root_key
from aios_kernel.errors import SnapshotError, UnknownModel

if TYPE_CHECKING:
    from aios_kernel.engine.torch.batch import Work
    from aios_kernel.engine.torch.context import TorchContext
    from aios_kernel.engine.torch.runner import ModelRunner


class Adapters:
    """The adapters of a model.

    Args:
        runner: of the model.
        shelf: keeps them.
    """

    def __init__(self, runner: ModelRunner, shelf: Shelf) -> None:
        self._runner = runner
        self.shelf = shelf
        self._table: tuple[tuple[tuple[int, int], ...], Table] | None = None

    def load(self, name: str, source: str) -> None:
        """See `LoraAdapters.load_lora`."""
        runner = self._runner
        self.shelf.add(read_adapter(name, locate_lora(source), runner.sites, runner.dtype))
        runner.take_adapters()

    def take(self, name: str | None) -> Adapter | None:
        """Use an adapter for a context that is opened. Raises UnknownModel, KvExhausted."""
        if name is None:
            return None
        adapter = self.shelf.find(name)
        self.shelf.take(adapter)
        return adapter

    def share(self, context: TorchContext) -> None:
        """Use the adapter of a context once more, for its twin."""
        if context.lora is not None:
            self.shelf.take(context.lora)

    def again(self, name: str) -> Adapter:
        """The adapter of a context that comes back. Raises SnapshotError."""
        try:
            return self.shelf.find(name)
        except UnknownModel as error:
            raise SnapshotError(f"the snapshot cannot go on: {error.message}", fix=error.fix) from error

    def take_again(self, state: TorchContext) -> Adapter | None:
        """Use the adapter of a context that comes back. Raises SnapshotError for another one, KvExhausted."""
        if state.lora is None:
            return None
        adapter = self.again(state.lora.name)
        if adapter.digest != state.lora.digest:
            raise SnapshotError(
                f'the snapshot is of another LoRA adapter than the "{adapter.name}" that is loaded now',
                fix="load the adapter that it was made with, or run the call again",
            )
        self.shelf.take(adapter)
        return adapter

    def root(self, salt: bytes, name: str | None) -> bytes:
        """The content key that a context's blocks begin from. Raises UnknownModel."""
        return root_key(salt, self.shelf.find(name).digest if name is not None else None)

    def table(self, works: Sequence[Work]) -> Table | None:
        """The adapters of a forward's rows; None where it has none. Contexts that decode keep theirs for many steps."""
        if not self._runner.adaptable:
            return None
        users = [(work.context.lora, work.n_tokens) for work in works]
        if not any(adapter for adapter, _ in users):
            return None
        key = tuple((id(adapter), n_tokens) for adapter, n_tokens in users)
        if self._table is None or self._table[0] != key:
            runner = self._runner
            self._table = key, Table(users, runner.sites, self.shelf.weights, runner.device)
        return self._table[1]
