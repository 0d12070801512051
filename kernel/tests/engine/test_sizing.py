"""The KV pool's size: from what is free, less a reserve, and never more than a control group allows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from aios_kernel.engine.torch import sizing
from aios_kernel.engine.torch.host_memory import available_bytes
from aios_kernel.engine.torch.kv import LayerShape
from aios_kernel.errors import ConfigError

GIB = 1 << 30
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
SHAPES = [LayerShape(heads=8, key_dim=128, value_dim=128)] * 32
TOKEN_BYTES = 32 * 8 * 256 * 2  # bfloat16


def tokens(monkeypatch: pytest.MonkeyPatch, device: torch.device, free: int, kv_tokens: int | None = None) -> int:
    monkeypatch.setattr(sizing, "free_bytes", lambda _: free)
    blocks = sizing.pool_blocks(SHAPES, torch.bfloat16, device, kv_tokens)
    return (blocks - 1) * 16  # one block is for padding


@pytest.mark.parametrize(
    ("device", "free", "pool_bytes"),
    [
        (CPU, 2 * GIB, GIB),  # half of it
        (CPU, 100 * GIB, sizing.CPU_CAP_BYTES),
        (CUDA, 10 * GIB, 8 * GIB),  # the reserve of 2 GiB
        (CUDA, 80 * GIB, 72 * GIB),  # 90 %
    ],
)
def test_the_pool_takes_what_is_free_less_a_reserve(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: torch.device,
    free: int,
    pool_bytes: int,
) -> None:
    with caplog.at_level(logging.INFO):
        found = tokens(monkeypatch, device, free)
    assert 0 <= pool_bytes - found * TOKEN_BYTES < 16 * TOKEN_BYTES
    (message,) = caplog.messages
    assert f"{found:,} tokens" in message
    assert f"{pool_bytes / GIB:.2f} of {free / GIB:.2f} GiB free on {device}" in message
    assert f"{(free - pool_bytes) / GIB:.2f} GiB are left in reserve" in message


def test_tiny_models_get_a_bounded_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "free_bytes", lambda _: 1 << 50)
    blocks = sizing.pool_blocks([LayerShape(1, 1, 1)], torch.bfloat16, CUDA, None)
    assert (blocks - 1) * 16 == sizing.MAX_TOKENS


def test_a_wish_is_granted_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens(monkeypatch, CPU, 4 * GIB, kv_tokens=1000) == 992  # whole blocks
    assert tokens(monkeypatch, CPU, 4 * GIB, kv_tokens=3 * GIB // TOKEN_BYTES) == 3 * GIB // TOKEN_BYTES
    with pytest.raises(ConfigError, match=r"GiB are free on cpu") as caught:
        tokens(monkeypatch, CPU, 4 * GIB, kv_tokens=5 * GIB // TOKEN_BYTES)
    assert str(4 * GIB // TOKEN_BYTES) in str(caught.value)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_no_room_at_all(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    with pytest.raises(ConfigError, match="no room"):
        tokens(monkeypatch, device, 100_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with 8 GiB available."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    return tmp_path


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def test_the_system_alone(root: Path) -> None:
    assert available_bytes(root) == 8 * GIB
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/memory.max", "max\n")
    write(root / "sys/fs/cgroup/memory.current", GIB)
    assert available_bytes(root) == 8 * GIB


@pytest.mark.parametrize("group", ["sys/fs/cgroup", "sys/fs/cgroup/a", "sys/fs/cgroup/a/b"])
def test_the_tightest_group_above_the_process_counts(root: Path, group: str) -> None:
    """As in a container, where the group is at the mount's root, or in a service, where it lies below."""
    write(root / "proc/self/cgroup", "0::/a/b\n")
    write(root / group / "memory.max", 3 * GIB)
    write(root / group / "memory.current", GIB)
    assert available_bytes(root) == 2 * GIB
    write(root / group / "memory.stat", f"anon 5\ninactive_file {GIB // 2}\n")  # can be given up
    assert available_bytes(root) == 5 * GIB // 2
    write(root / group / "memory.current", 4 * GIB)
    assert available_bytes(root) == 0


def test_the_first_version_of_control_groups(root: Path) -> None:
    write(root / "proc/self/cgroup", "9:cpu:/x\n4:memory:/docker/77\n1:name=systemd:/\n")
    write(root / "sys/fs/cgroup/memory/docker/77/memory.limit_in_bytes", 3 * GIB)
    write(root / "sys/fs/cgroup/memory/docker/77/memory.usage_in_bytes", GIB)
    assert available_bytes(root) == 2 * GIB


def test_this_machine() -> None:
    assert 0 < available_bytes() < 1 << 50


def test_another_system(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 0
