"""A policy from somebody else's distribution: found by its entry point, selected by its name, used by a kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PLUGIN = """
    import pluggy
    from aios_kernel.scheduler.packing import Packer

    hookimpl = pluggy.HookimplMarker("aios_kernel")


    class Shortest:
        name = "shortest"
        parks = False

        def __init__(self, options):
            pass

        def observe(self, event, now_s):
            pass

        def decide(self, view, now_s):
            return Packer(view, sorted(view.tasks, key=lambda task: task.length)).fill()


    @hookimpl
    def aios_kernel_policies():
        return {"shortest": Shortest}
"""
USE = """
    from aios_kernel.client import Client, connect
    from aios_kernel.config import load
    from aios_kernel.syscalls import KernelInfo, LlmChat, Message

    client = Client(connect(load()))
    answer = client.call(LlmChat(messages=[Message(role="user", content="say all right")]))
    print(client.call(KernelInfo()).policy, answer.text)
"""


def test_a_policy_of_another_distribution_serves(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "shortest_policy-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "shortest_policy.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shortest-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aios_kernel]\nshortest = shortest_policy\n")
    settings = {"KERNEL": "inprocess", "MODEL": "fake", "POLICY": "shortest", "EMBEDDER": "hash", "VECTORS": "exact"}
    environment = {
        **os.environ,
        **{f"AIOS_{key}": value for key, value in settings.items()},
        "AIOS_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(site),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(USE)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["shortest", "all", "right"], done.stderr
