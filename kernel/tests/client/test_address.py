"""A kernel by the URL of its HTTP front or of its socket; URLs that can be no kernel's are refused."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from aios_kernel.client import Client, connect
from aios_kernel.config import Config, socket_of
from aios_kernel.errors import AuthError, ConfigError, KernelUnavailable
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import KernelInfo, KernelStatus


@pytest.fixture
def served(tmp_path: Path) -> Generator[InProcessKernel]:
    config = Config(
        kernel="inprocess", home=str(tmp_path / "aios"), model="fake", embedder="hash", vectors="exact",
        http="127.0.0.1:0",
    )  # fmt: skip
    running = InProcessKernel(config)
    yield running
    running.stop()


def model_of(config: Config) -> str:
    connection = connect(config)
    try:
        status = Client(connection).call(KernelInfo())
    finally:
        connection.close()
    assert isinstance(status, KernelStatus)
    return status.model


def test_by_the_url_of_its_front(served: InProcessKernel, tmp_path: Path) -> None:
    assert served.kernel is not None
    url = served.kernel.http_url or ""
    elsewhere = str(tmp_path / "elsewhere")
    assert model_of(Config(kernel=url, home=elsewhere)) == "fake"
    assert model_of(Config(kernel=url.replace("127.0.0.1", "localhost") + "/", home=elsewhere)) == "fake"
    with pytest.raises(AuthError):
        connect(Config(kernel=url, home=elsewhere, token="wrong"))
    assert not (tmp_path / "elsewhere").exists()


def test_by_the_url_of_its_socket(served: InProcessKernel, tmp_path: Path) -> None:
    path = tmp_path / "aios" / "run" / "kernel.sock"
    assert model_of(Config(kernel=f"unix://{path}")) == "fake"
    assert socket_of(Config(kernel=f"unix://{path}")) == path


def test_nobody_there() -> None:
    with pytest.raises(KernelUnavailable, match="no kernel answers") as caught:
        connect(Config(kernel="http://127.0.0.1:9"))
    assert caught.value.fix == "aios serve --http 127.0.0.1:9"


def test_somebody_else_there() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"socket": 7}')

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(KernelUnavailable, match="is no kernel"):
            connect(Config(kernel=f"http://127.0.0.1:{server.server_port}"))
        thread.join()


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.7:8400", "http://example.org:8400", "https://127.0.0.1:8400", "http://127.0.0.1",
        "http://127.0.0.1:8400/v1", "tcp://127.0.0.1:8400", "http://127.0.0.1:99999", "http://[::1", "http://me@localhost:1",
    ],
)  # fmt: skip
def test_what_can_be_no_kernel_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(Config(kernel=url))
    assert caught.value.fix


def test_nothing_can_be_served_at_an_url() -> None:
    with pytest.raises(ConfigError, match="cannot be served") as caught:
        socket_of(Config(kernel="http://127.0.0.1:8400"))
    assert "aios serve --http" in (caught.value.fix or "")
