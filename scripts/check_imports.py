"""Check the import directions of the house; prints every arrow that points the wrong way and fails.

adapters -> aios_adapters -> aios_kernel (its client side only). The kernel imports neither; its managers do not import
each other; nobody imports the evals. Imports under `if TYPE_CHECKING` count too: they are arrows in a reader's mind.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT_SIDE = {"syscalls", "client", "errors", "config", "openai_wire"}
FRAMEWORKS = {"langchain", "langchain_core", "langchain_openai", "langgraph", "autogen_core", "autogen_agentchat",
              "autogen_ext", "llama_index", "metagpt", "openai"}  # fmt: skip
HEAVY = {"torch", "transformers", "chromadb", "sentence_transformers", "xgrammar", "numpy", "starlette", "uvicorn"}
MANAGERS = {"memory", "storage", "tools", "access"}


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Imported modules with their line, and whether the import is at the top level (executed on import)."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, id(node) in top


def complaint(path: Path, module: str, top_level: bool) -> str | None:
    """Why a file may not import a module, or None."""
    parts = path.relative_to(ROOT).parts
    first, _, rest = module.partition(".")
    if first == "aios_evals" and parts[0] != "evals":
        return "nobody imports the evals"
    if parts[0] == "kernel":
        return _kernel_complaint(parts, first, rest, top_level)
    if parts[0] in {"aios_adapters", "adapters"}:
        if first == "aios_kernel" and rest.partition(".")[0] not in CLIENT_SIDE:
            return "only the client side of the kernel may be imported here"
        if parts[0] == "aios_adapters" and (first in FRAMEWORKS or first.startswith("aios_adapter_")):
            return "aios_adapters imports no framework and no adapter"
        if first.startswith("aios_adapter_") and first not in parts:
            return "adapters do not import each other"
    return None


def _kernel_complaint(parts: tuple[str, ...], first: str, rest: str, top_level: bool) -> str | None:
    if first in FRAMEWORKS or first.startswith("aios_adapter"):
        return "the kernel imports no framework and no adapter"
    inside = parts[3:] if len(parts) > 3 else ()
    if inside and inside[0].removesuffix(".py") in CLIENT_SIDE and top_level and first in HEAVY:
        return "the client side needs nothing but msgspec"
    room, target = (inside[0] if inside else ""), rest.partition(".")[0]
    if first == "aios_kernel" and room in MANAGERS and target in MANAGERS - {room}:
        return "managers do not import each other"
    return None


def main() -> int:
    """Check every source file."""
    files = [
        p for place in ("kernel/src", "aios_adapters", "adapters", "evals/src") for p in (ROOT / place).rglob("*.py")
    ]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}: {why}"
        for path in files
        if "tests" not in path.parts
        for module, line, top_level in imports(path)
        if (why := complaint(path, module, top_level))
    ]
    sys.stdout.write("".join(f"{row}\n" for row in wrong) or f"import directions hold in {len(files)} files\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
