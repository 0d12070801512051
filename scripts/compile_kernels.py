"""Compile the attention kernels for GPUs that are not here, and tell what each takes of one: a JSON line a kernel.

What Triton's interpreter does not know: whether the compiler takes a kernel, how much shared memory a program needs,
how many registers a thread, and what of them is spilled to memory. Needs no GPU, but Triton without its interpreter.

    python scripts/compile_kernels.py [--target 80 --target 90]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from aios_kernel.engine.torch.paged import kernels

POINTERS = {
    **dict.fromkeys(("slots", "offsets", "tables", "lengths", "shared", "units", "pieces"), "*i64"),
    **dict.fromkeys(("partial", "weights"), "*fp32"),
}
TENSORS = ("query", "key", "value", "keys", "values", "out")
FLOATS = ("scale", "softcap")


class Shape(NamedTuple):
    """Of a model's attention."""

    dtype: str
    dim: int
    group: int
    kv_heads: int
    windowed: bool = False


SHAPES = (
    Shape("bf16", 128, 4, 8), Shape("bf16", 128, 7, 4), Shape("bf16", 128, 8, 4), Shape("fp16", 64, 8, 4),
    Shape("bf16", 256, 2, 4, windowed=True), Shape("fp32", 128, 4, 8),
)  # fmt: skip
"""Llama-3.1-8B, Qwen2.5-7B, Qwen3-30B-A3B, small ones, Gemma (windows, capped scores), float32."""


def main() -> None:
    """Compile them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=int, action="append", help="compute capability, such as 90 (default)")
    for target in parser.parse_args().target or [90]:
        for shape in SHAPES:
            for name, constants, options in launches(shape):
                row = {"kernel": name, "target": target, **shape._asdict()}
                print(json.dumps(row | taken(name, shape.dtype, target, constants, options)), flush=True)  # noqa: T201


def launches(shape: Shape) -> Iterator[tuple[str, dict[str, Any], dict[str, int]]]:
    """The kernels with their constants and options, as `paged.memory` launches them."""
    _, dim, group, kv_heads, windowed = shape
    heads = group * kv_heads
    large = dim > 128 or shape.dtype == "fp32"
    common = {
        "KV_HEADS": kv_heads, "KEY_DIM": dim, "VALUE_DIM": dim, "KEY_PAD": dim, "VALUE_PAD": dim,
        "TILE": 32 if large else 64, "BLOCK": 16, "WINDOWED": windowed, "CAPPED": windowed, "WIDE": False,
    }  # fmt: skip
    one, several = {"num_warps": 4, "num_stages": 3}, {"num_warps": 4, "num_stages": 2}
    yield "decode", {**common, "SPLITS": 64, "PARTS": 128, "GROUP": group, "M": 16}, one
    yield "prefix", {**common, "SPLITS": 16, "FIRST": 64, "PARTS": 128, "GROUP": group, "M": 64}, several
    yield "chunk", {**common, "HEADS": heads, "M": 64 if large else 128}, {"num_warps": 8, "num_stages": 2}
    yield "merge", {
        "SPLITS": 64, "PARTS": 128, "HEADS": heads, "VALUE_DIM": dim, "PARTS_PAD": 128, "VALUE_PAD": dim,
    }, {"num_warps": 8}  # fmt: skip
    yield "put", {
        "HEADS": kv_heads, "KEY_DIM": dim, "VALUE_DIM": dim, "HEADS_PAD": kv_heads, "KEY_PAD": dim, "VALUE_PAD": dim,
    }, {}  # fmt: skip


def taken(
    name: str, dtype: str, target: int, constants: dict[str, Any], options: dict[str, int]
) -> dict[str, int | None]:
    """Bytes of shared memory, registers of a thread, and bytes that it spills."""
    kernel: Any = getattr(kernels, name)
    signature: dict[str, str] = {}
    values: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(place,)] = "constexpr", constants[argument]
            continue
        pointer = f"*{dtype}" if argument in TENSORS else POINTERS.get(argument)
        signature[argument] = pointer or ("fp32" if argument in FLOATS else "i32")
        if argument not in {*FLOATS, "window"}:  # addresses and strides are multiples of 16
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return {"shared_bytes": made.metadata.shared, **_assembled(made.asm["ptx"], target)}


def _assembled(ptx: str, target: int) -> dict[str, int | None]:
    architecture = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [
            get_ptxas(target).path,
            "-v",
            f"--gpu-name={architecture[1]}",
            str(file),
            "-o",
            str(Path(folder) / "cubin"),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    return {
        "registers": int(registers[1]) if registers else None,
        "spilled_bytes": int(spilled[1]) if spilled else None,
    }


if __name__ == "__main__":
    main()
