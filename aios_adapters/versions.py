"""The versions that each adapter was tested with: the one table that adapters, `aios doctor`, CI and the docs read.

A range is the lowest tested version and the first one that is not tested. `make nightly` says how the newest releases
do; whoever widens a range here widens it in the adapter's `pyproject.toml`, too (a test compares them).
"""

from __future__ import annotations

from collections.abc import Mapping

from aios_adapters.adapter import VersionRange

_AUTOGEN = ("0.7", "0.8")

TESTED: Mapping[str, Mapping[str, VersionRange]] = {
    "langchain": {
        "langchain": ("1.4", "1.5"),
        "langchain-core": ("1.7", "1.8"),
        "langchain-openai": ("1.7", "1.8"),
        "langgraph": ("1.2", "1.3"),
    },
    "autogen": {"autogen-agentchat": _AUTOGEN, "autogen-core": _AUTOGEN, "autogen-ext": _AUTOGEN},
    "llamaindex": {
        "llama-index-core": ("0.14", "0.15"),
        "llama-index-workflows": ("2.26", "2.27"),
        "llama-index-llms-openai": ("0.8", "0.9"),
    },
    "openai": {"openai": ("2.45", "4")},
    "metagpt": {"metagpt": ("0.8.2", "0.8.3")},
}


def markdown() -> str:
    """The table for the docs."""
    rows = [
        f"| {adapter} | {distribution} | {low} | {high} |"
        for adapter, ranges in TESTED.items()
        for distribution, (low, high) in ranges.items()
    ]
    return "\n".join(["| adapter | distribution | tested from | tested below |", "|---|---|---|---|", *rows]) + "\n"
