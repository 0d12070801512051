"""Runners of the isolation levels of this machine. A missing level skips its tests, except where CI needs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aios_kernel.errors import Unsupported
from aios_kernel.tools.isolation.container import Container
from aios_kernel.tools.isolation.level import Runner
from aios_kernel.tools.isolation.plain import Plain
from aios_kernel.tools.isolation.sandbox import Sandbox
from aios_kernel.tools.isolation.subprocess_level import Subprocess

LEVELS: dict[str, Callable[[], Any]] = {
    "trusted": Plain,
    "subprocess": Subprocess,
    "sandbox": Sandbox,
    "container": Container,
}


def runner_of(name: str) -> Runner:
    runner = Runner(LEVELS[name]())
    try:
        runner.check()
    except Unsupported as error:
        if os.environ.get("REQUIRE_ISOLATION") and name != "container":  # which few machines have
            pytest.fail(f"REQUIRE_ISOLATION is set, and level {name} is missing: {error}")
        pytest.skip(f"level {name} is missing: {error.message}")
    return runner


@pytest.fixture(params=["subprocess", "sandbox", "container"])
def confined(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Each confined level."""
    runner = runner_of(request.param)
    yield runner
    runner.stop()


@pytest.fixture(params=["trusted", "subprocess", "sandbox", "container"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Each level."""
    runner = runner_of(request.param)
    yield runner
    runner.stop()


@pytest.fixture
def sandbox() -> Iterator[Runner]:
    """Level 2."""
    runner = runner_of("sandbox")
    yield runner
    runner.stop()


@pytest.fixture
def shell() -> str:
    """Absolute path of a POSIX shell."""
    return shutil.which("sh", path="/usr/bin:/bin") or "/bin/sh"


@pytest.fixture
def has_subprocess() -> None:
    """Skips where level 1 is missing."""
    runner_of("subprocess").stop()


@pytest.fixture
def has_container() -> None:
    """Skips where level 3 is missing."""
    runner_of("container").stop()


@pytest.fixture
def has_sandbox() -> None:
    """Skips where level 2 is missing."""
    runner_of("sandbox").stop()
