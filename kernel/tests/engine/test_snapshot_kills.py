"""A kernel that dies or meets a full disk while it writes a context to disk leaves a whole file or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from aios_kernel.context.disk import DiskTier
from aios_kernel.engine.load import load_model
from aios_kernel.failpoints import ENVIRONMENT, Fault

SAVE = """
import sys
from pathlib import Path
from aios_kernel.engine.load import load_model
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.errors import SnapshotError

folder = Path(sys.argv[1])
engine = load_model("demo", device="cpu", dtype="float32", kv_tokens=2048, threads=1).engine
context = engine.open(list(range(5, 45)), sampling=SamplingParams())
engine.step([(context, 64)])
snapshot = engine.snapshot(context)
for number in range(3):
    try:
        snapshot.save(folder / f"{number}.safetensors")
        print(number, "saved", flush=True)
    except SnapshotError as error:
        assert error.fix
        print(number, "refused", flush=True)
"""


def saved(folder: Path, point: str, fault: Fault) -> tuple[list[str], int]:
    """What a process that saves three snapshots said, and how it ended."""
    plan = folder.parent / "plan.json"
    plan.write_bytes(msgspec.json.encode({point: fault}))
    command = [sys.executable, "-c", SAVE, folder]
    with subprocess.Popen(
        command, env=os.environ | {ENVIRONMENT: str(plan)}, stdout=subprocess.PIPE, text=True
    ) as child:
        said = child.communicate()[0].splitlines()
    return said, child.returncode


@pytest.mark.slow
@pytest.mark.parametrize("point", ["context.created", "context.written", "context.synced", "context.saved"])
def test_what_a_killed_kernel_leaves_is_whole_and_goes_at_the_next_start(tmp_path: Path, point: str) -> None:
    folder = tmp_path / "swap"
    folder.mkdir()
    said, code = saved(folder, point, Fault("kill", skip=1))
    assert (said, code) == (["0 saved"], -signal.SIGKILL)
    model = load_model("demo", device="cpu", dtype="float32", kv_tokens=2048, threads=1)
    whole = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    assert [path.stem for path in whole] == (["0", "1"] if point == "context.saved" else ["0"])
    for path in whole:
        context = model.engine.restore(model.engine.load_snapshot(path, model.codec.load_grammar))
        assert context.tokens[:40] == list(range(5, 45))
        model.engine.release(context)
    tier = DiskTier(model.engine, model.codec.load_grammar, folder, 1 << 30)
    tier._thread.submit(list).result()  # after its first task, which clears the folder
    assert list(folder.iterdir()) == []
    tier.close()


@pytest.mark.slow
@pytest.mark.parametrize("action", ["ENOSPC", "EIO", "EMFILE"])
def test_a_disk_that_refuses_is_a_typed_error_and_leaves_nothing(tmp_path: Path, action: str) -> None:
    folder = tmp_path / "swap"
    folder.mkdir()
    said, code = saved(folder, "context.synced", Fault(action, skip=1, times=1))  # type: ignore[arg-type]
    assert (said, code) == (["0 saved", "1 refused", "2 saved"], 0)
    assert sorted(path.name for path in folder.iterdir()) == ["0.safetensors", "2.safetensors"]
