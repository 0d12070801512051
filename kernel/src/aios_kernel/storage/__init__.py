"""Versioned files of agents and groups."""

from aios_kernel.storage.postgres import PostgresStorage
from aios_kernel.storage.protocol import MAX_FILE_BYTES, Storage
from aios_kernel.storage.sqlite import SqliteStorage

__all__ = ["MAX_FILE_BYTES", "PostgresStorage", "SqliteStorage", "Storage"]
