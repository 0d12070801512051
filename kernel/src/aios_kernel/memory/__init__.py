"""Long-term memory: notes in SQLite, found again through vectors."""

from aios_kernel.memory.chroma import ChromaIndex
from aios_kernel.memory.chroma_store import ChromaStore
from aios_kernel.memory.embedder import Embedder, HashEmbedder
from aios_kernel.memory.exact import ExactIndex
from aios_kernel.memory.index import Space, VectorIndex
from aios_kernel.memory.manager import MemoryManager
from aios_kernel.memory.minilm import SentenceTransformerEmbedder
from aios_kernel.memory.reranker import CrossEncoderReranker, Reranker

__all__ = [
    "ChromaIndex",
    "ChromaStore",
    "CrossEncoderReranker",
    "Embedder",
    "ExactIndex",
    "HashEmbedder",
    "MemoryManager",
    "Reranker",
    "SentenceTransformerEmbedder",
    "Space",
    "VectorIndex",
]
