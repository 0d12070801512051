"""The built-in engines, policies, backends and embedders, as a plugin. Heavy imports happen when one is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aios_kernel.errors import ConfigError
from aios_kernel.plugins import (
    EmbedderFactory,
    EngineFactory,
    IsolationFactory,
    PolicyFactory,
    RerankerFactory,
    StorageFactory,
    ToolSourceFactory,
    VectorFactory,
    hookimpl,
)

if TYPE_CHECKING:
    from aios_kernel.chat.protocol import LoadedModel
    from aios_kernel.config import Config
    from aios_kernel.memory import Embedder, Reranker, VectorIndex
    from aios_kernel.storage import Storage
    from aios_kernel.tools import Confine, Isolation, ToolSource
    from aios_kernel.tools.file import ToolsFile


@hookimpl
def aios_kernel_engines() -> Mapping[str, EngineFactory]:
    """The torch engine (any transformers model), llama.cpp (GGUF), vLLM, any OpenAI-compatible server, and the fake."""
    return {
        "torch": _torch,
        "llamacpp": _llamacpp,
        "vllm": _vllm,
        "vllm-inprocess": _vllm_inprocess,
        "openai": _openai,
        "fake": _fake,
    }


@hookimpl
def aios_kernel_policies() -> Mapping[str, PolicyFactory]:
    """The scheduling policies."""
    from aios_kernel.scheduler.fair import Fair
    from aios_kernel.scheduler.fifo import Fifo
    from aios_kernel.scheduler.priority import Priority
    from aios_kernel.scheduler.program import ProgramPolicy
    from aios_kernel.scheduler.round_robin import RoundRobin

    return {"fifo": Fifo, "program": ProgramPolicy, "round_robin": RoundRobin, "priority": Priority, "fair": Fair}


@hookimpl
def aios_kernel_storage() -> Mapping[str, StorageFactory]:
    """Storage in SQLite, or in PostgreSQL."""
    return {"sqlite": _sqlite, "postgres": _postgres}


@hookimpl
def aios_kernel_vectors() -> Mapping[str, VectorFactory]:
    """Vector indexes: chromadb on disk, or exact search in memory."""
    return {"chroma": _chroma, "exact": _exact}


@hookimpl
def aios_kernel_embedders() -> Mapping[str, EmbedderFactory]:
    """Embedders: sentence-transformers, or hashed words for tests."""
    return {"sentence-transformers": _sentence_transformers, "hash": _hash}


@hookimpl
def aios_kernel_rerankers() -> Mapping[str, RerankerFactory]:
    """No reranker, or a cross-encoder from a folder."""
    return {"": _no_reranker, "cross-encoder": _cross_encoder}


@hookimpl
def aios_kernel_tool_sources() -> Mapping[str, ToolSourceFactory]:
    """Commands, Python functions and MCP servers of the tools file."""
    return {"commands": _command_tools, "python": _python_tools, "mcp": _mcp_tools}


@hookimpl
def aios_kernel_isolation() -> Mapping[Isolation, IsolationFactory]:
    """Landlock and seccomp, bubblewrap, podman."""
    return {"subprocess": _subprocess_level, "sandbox": _sandbox_level, "container": _container_level}


def _torch(config: Config) -> LoadedModel:
    from aios_kernel.engine.expert_options import ExpertOptions
    from aios_kernel.engine.load import load_model

    return load_model(
        config.model.removeprefix("torch:"),
        device=config.device,
        dtype=config.dtype,
        kv_tokens=config.kv_tokens or None,
        threads=config.threads or None,
        revision=config.revision or None,
        compile=config.compile,
        experts=ExpertOptions(config.expert_cache, config.expert_int8) if config.expert_cache else None,
    )


def _llamacpp(config: Config) -> LoadedModel:
    """`llamacpp:FILE.gguf`."""
    try:
        from aios_kernel.engine.llamacpp import llamacpp_model
    except ModuleNotFoundError as error:
        raise ConfigError(f"{config.model} needs {error.name}", fix="pip install 'aios-kernel[llamacpp]'") from error
    return llamacpp_model(
        config.model.partition(":")[2],
        device=config.device,
        dtype=config.dtype,
        kv_tokens=config.kv_tokens or None,
        threads=config.threads or None,
        loras=config.loras,
    )


def _vllm(config: Config) -> LoadedModel:
    """`vllm:` and a folder or a Hugging Face id, on a vLLM server that the kernel starts."""
    from aios_kernel.config import home_of

    try:
        from aios_kernel.engine.vllm import vllm_model
    except ModuleNotFoundError as error:
        raise ConfigError(f"{config.model} needs {error.name}", fix="pip install 'aios-kernel[openai]'") from error
    return vllm_model(
        config.model.partition(":")[2],
        config.vllm,
        home=home_of(config),
        slots=config.server_slots,
        hints=config.server_hints,
        loras=config.loras,
    )


def _vllm_inprocess(config: Config) -> LoadedModel:
    """`vllm-inprocess:` and a folder or a Hugging Face id."""
    from aios_kernel.engine.vllm.inprocess.load import vllm_inprocess_model

    return vllm_inprocess_model(
        config.model.partition(":")[2],
        dtype=config.dtype,
        kv_tokens=config.kv_tokens or None,
        loras=config.loras,
        args=config.vllm.args,
    )


def _fake(config: Config) -> LoadedModel:
    """`fake`, or `fake:` and some of max_batch, window, step_us, token_us, as in `fake:step_us=1000,token_us=10`."""
    from aios_kernel.engine.fake import fake_model

    sizes = [size.partition("=") for size in config.model.partition(":")[2].split(",") if size]
    try:
        return fake_model(kv_tokens=config.kv_tokens or 1 << 20, **{name: int(number) for name, _, number in sizes})
    except (TypeError, ValueError) as error:
        raise ConfigError(f'model = "{config.model}" is wrong: {error}', fix='set model = "fake"') from error


def _openai(config: Config) -> LoadedModel:
    try:
        from aios_kernel.engine.openai import openai_model
    except ModuleNotFoundError as error:
        raise ConfigError(f"{config.model} needs {error.name}", fix="pip install 'aios-kernel[openai]'") from error
    name = config.model.partition(":")[2]
    return openai_model(
        name,
        config.base_url,
        api_key=config.api_key,
        slots=config.server_slots,
        hints=config.server_hints,
        loras=config.loras,
    )


def _sqlite(config: Config) -> Storage:
    from aios_kernel.config import home_of
    from aios_kernel.storage import SqliteStorage

    return SqliteStorage(home_of(config) / "storage.db", config.storage_quota_bytes)


def _postgres(config: Config) -> Storage:
    from aios_kernel.storage import PostgresStorage

    if not config.storage_url:
        raise ConfigError('storage = "postgres" needs storage_url', fix="set storage_url to postgresql://...")
    return PostgresStorage(config.storage_url, config.storage_quota_bytes)


def _chroma(home: Path, embedder: str) -> VectorIndex:
    from aios_kernel.memory import ChromaIndex

    return ChromaIndex(home / "chroma", embedder)


def _exact(home: Path, embedder: str) -> VectorIndex:
    from aios_kernel.memory import ExactIndex

    return ExactIndex()


def _sentence_transformers(config: Config) -> Embedder:
    from aios_kernel.memory import SentenceTransformerEmbedder

    return SentenceTransformerEmbedder(None if config.embedder == "auto" else Path(config.embedder))


def _hash(config: Config) -> Embedder:
    from aios_kernel.memory import HashEmbedder

    return HashEmbedder()


def _no_reranker(config: Config) -> Reranker | None:
    return None


def _cross_encoder(config: Config) -> Reranker | None:
    from aios_kernel.memory import CrossEncoderReranker

    return CrossEncoderReranker(Path(config.reranker).expanduser())


def _command_tools(config: Config, file: ToolsFile) -> ToolSource:
    from aios_kernel.tools.commands import CommandTools

    return CommandTools(config, file)


def _subprocess_level(config: Config) -> Confine:
    from aios_kernel.config import home_of
    from aios_kernel.tools.isolation.confine import Confiner
    from aios_kernel.tools.isolation.subprocess_level import Subprocess

    return Confiner(Subprocess(), home_of(config))


def _sandbox_level(config: Config) -> Confine:
    from aios_kernel.config import home_of
    from aios_kernel.tools.isolation.confine import Confiner
    from aios_kernel.tools.isolation.sandbox import Sandbox

    return Confiner(Sandbox(), home_of(config))


def _container_level(config: Config) -> Confine:
    from aios_kernel.config import home_of
    from aios_kernel.tools.isolation.confine import Confiner
    from aios_kernel.tools.isolation.container import Container

    return Confiner(Container(), home_of(config))


def _python_tools(config: Config, file: ToolsFile) -> ToolSource:
    from aios_kernel.tools.python import python_tools

    return python_tools(config, file)


def _mcp_tools(config: Config, file: ToolsFile) -> ToolSource:
    try:
        from aios_kernel.tools.mcp import mcp_tools
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"[mcp] of the tools file needs {error.name}", fix="pip install 'aios-kernel[mcp]'"
        ) from error
    return mcp_tools(config, file)
