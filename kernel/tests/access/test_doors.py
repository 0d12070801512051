"""People answer by HTTP too, the policy is read again on a signal, and principals stay apart."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx
import pytest

from aios_kernel import errors
from aios_kernel.client import AsyncClient, Client, Connection, kernel_command, kernel_input
from aios_kernel.config import Config, socket_of, token_file_of
from aios_kernel.server.inprocess import InProcessKernel
from aios_kernel.syscalls import (
    AccessCheck,
    AccessPending,
    AccessPolicy,
    AccessVerdict,
    AgentSpawn,
    Approvals,
    PolicyText,
    ToolBegin,
    ToolGrant,
)

POLICY = """\
[[allow]]
rights = ["call", "use"]
resources = ["tool/*", "model/*"]
[[ask]]
name = "mail"
rights = ["call"]
resources = ["tool/mail"]
timeout_s = 30
"""
GUEST = "guest-token"
BY = '[approvals]\nby = ["guest"]\n'


def config_of(home: Path, policy: str, **more: str) -> Config:
    (home / "access.toml").write_text(policy)
    guest = hashlib.sha256(GUEST.encode()).hexdigest()
    return Config(
        home=str(home), model="fake", embedder="hash", vectors="exact", principals={"guest": guest}, **more
    )  # fmt: skip


class Served:
    """A kernel with its HTTP front on a port."""

    def __init__(self, config: Config) -> None:
        self.running = InProcessKernel(config)
        assert self.running.kernel is not None
        assert self.running.kernel.http_url is not None
        self.url = self.running.kernel.http_url
        self.token = token_file_of(config).read_text()
        self.connection = self.running.connect("agents")
        self.client = AsyncClient(self.connection)

    def http(self, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {token}"}, timeout=20)

    def stop(self) -> None:
        self.connection.close()
        self.running.stop()


@pytest.fixture
def served(tmp_path: Path) -> Generator[Served]:
    made = Served(config_of(tmp_path, POLICY, kernel="inprocess", http="127.0.0.1:0"))
    yield made
    made.stop()


@pytest.fixture
async def http(served: Served) -> AsyncGenerator[httpx.AsyncClient]:
    async with served.http(served.token) as client:
        yield client


async def test_a_person_answers_by_http(served: Served, http: httpx.AsyncClient) -> None:
    await served.client.call(AgentSpawn(program="p", agent="worker"))
    waiting = asyncio.create_task(served.client.call(ToolBegin(name="mail", arguments='{"to": "ann"}'), program="p"))
    asked = (await http.get("/v1/approvals", params={"wait": "true"})).json()["approvals"]
    assert [(each["agent"], each["resource"], each["arguments"]) for each in asked] == [
        ("worker", "tool/mail", '{"to": "ann"}')
    ]
    async with served.http(GUEST) as guest:
        assert (await guest.get("/v1/approvals")).json() == {"approvals": []}
        assert (await guest.post(f"/v1/approvals/{asked[0]['id']}", json={"allow": True})).status_code == 404
    reply = await http.post(f"/v1/approvals/{asked[0]['id']}", json={"allow": True, "remember": True})
    assert (reply.status_code, reply.json()["remember"]) == (200, True)
    assert isinstance(await asyncio.wait_for(waiting, 10), ToolGrant)
    assert isinstance(await served.client.call(ToolBegin(name="mail"), program="p"), ToolGrant)
    assert (await http.get("/v1/approvals")).json() == {"approvals": []}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/approvals/x", {"allow": True}, {"authorization": ""}, 401),
        ("/v1/approvals/x", {"allow": True}, {"authorization": "Bearer wrong"}, 401),
        ("/v1/approvals/x", {"allow": True}, {"origin": "http://evil.example"}, 403),
        ("/v1/approvals/x", {"allow": True}, {"host": "evil.example"}, 403),
        ("/v1/approvals/x", {"allow": True}, {"content-type": "text/plain"}, 415),
        ("/v1/approvals/x", {"allow": True}, {}, 404),
        ("/v1/approvals/x", {"allow": "yes"}, {}, 400),
        ("/v1/approvals/x", {"allow": True, "also": 1}, {}, 400),
        ("/v1/approvals/x", {}, {}, 400),
    ],
)
async def test_answers_come_in_by_the_front_door_only(
    http: httpx.AsyncClient, path: str, body: dict[str, object], headers: dict[str, str], status: int
) -> None:
    assert (await http.post(path, json=body, headers=headers)).status_code == status


@pytest.mark.parametrize("query", ["wait=yes", "after=x", "after=-1", "more=1"])
async def test_a_wrong_query_is_refused(http: httpx.AsyncClient, query: str) -> None:
    assert (await http.get(f"/v1/approvals?{query}")).status_code == 400


async def test_a_named_principal_answers_for_others_and_only_it(tmp_path: Path) -> None:
    served = Served(config_of(tmp_path, POLICY + BY, kernel="inprocess", http="127.0.0.1:0"))
    await served.client.call(AgentSpawn(program="p", agent="worker"))
    waiting = asyncio.create_task(served.client.call(ToolBegin(name="mail"), program="p"))
    async with served.http(GUEST) as guest, served.http(served.token) as user:
        asked = (await guest.get("/v1/approvals?wait=true")).json()["approvals"]
        assert (await user.get("/v1/approvals")).json() == {"approvals": []}
        assert (await user.post(f"/v1/approvals/{asked[0]['id']}", json={"allow": True})).status_code == 404
        assert (await guest.post(f"/v1/approvals/{asked[0]['id']}", json={"allow": True})).status_code == 200
    assert isinstance(await asyncio.wait_for(waiting, 10), ToolGrant)
    served.stop()


class Process:
    """A kernel in a process of its own, with two principals."""

    def __init__(self, config: Config) -> None:
        self.config = config
        ours, theirs = os.pipe()
        self.process = subprocess.Popen(
            [*kernel_command(config, forever=True), "--report-fd", str(theirs)],
            stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(theirs,),
        )  # fmt: skip
        os.close(theirs)
        assert self.process.stdin is not None
        self.process.stdin.write(kernel_input(config))
        self.process.stdin.close()
        with os.fdopen(ours, "rb") as report:
            assert report.read() == b"ready"

    def connect(self, token: str = "") -> Connection:
        return Connection.open(socket_of(self.config), token or token_file_of(self.config).read_text(), "test")

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0


@pytest.fixture
def process(tmp_path: Path) -> Generator[Process]:
    made = Process(config_of(tmp_path, POLICY))
    yield made
    made.end()


def effect(client: Client, resource: str) -> str:
    verdict = client.call(AccessCheck(agent="a", right="call", resource=resource))
    assert isinstance(verdict, AccessVerdict)
    return verdict.effect


def test_a_signal_has_the_policy_read_again(process: Process, tmp_path: Path) -> None:
    connection = process.connect()
    client = Client(connection)
    assert effect(client, "tool/x") == "allow"
    (tmp_path / "access.toml").write_text(POLICY.replace("tool/*", "tool/y*"))
    process.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + 20
    while effect(client, "tool/x") != "deny":
        assert time.monotonic() < until
    (tmp_path / "access.toml").write_text("wrong")
    process.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert (effect(client, "tool/x"), effect(client, "tool/y")) == ("deny", "allow")
    with pytest.raises(errors.ConfigError, match="no TOML"):
        client.call(AccessPolicy(reload=True))
    connection.close()


def test_only_the_kernels_user_reads_and_reloads_the_policy(process: Process) -> None:
    guest, user = process.connect(GUEST), process.connect()
    for reload in (False, True):
        with pytest.raises(errors.AccessDenied, match="the kernel's user's"):
            Client(guest).call(AccessPolicy(reload=reload))
    text = Client(user).call(AccessPolicy())
    assert isinstance(text, PolicyText)
    assert text.text == POLICY
    for connection in (guest, user):
        connection.close()


def test_what_waits_is_gone_after_a_kill(tmp_path: Path) -> None:
    config = config_of(tmp_path, POLICY)
    first = Process(config)
    connection = first.connect()
    client = Client(connection)
    client.call(AgentSpawn(program="p", agent="worker"))
    ended: list[object] = []
    client.start(ToolBegin(name="mail"), ended.append, program="p")
    asked = client.call(AccessPending(wait=True))
    assert isinstance(asked, Approvals)
    assert len(asked.approvals) == 1
    first.process.kill()
    first.process.wait(20)
    until = time.monotonic() + 10
    while not ended:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert isinstance(ended[0], errors.KernelUnavailable)
    second = Process(config)
    again = second.connect()
    assert Client(again).call(AccessPending()) == Approvals(approvals=[])
    again.close()
    connection.close()
    second.end()


def test_the_socket_its_folder_and_the_databases_are_this_users(process: Process, tmp_path: Path) -> None:
    for path, mode in (
        (socket_of(process.config), 0o600),
        (socket_of(process.config).parent, 0o700),
        (token_file_of(process.config), 0o600),
        (tmp_path / "access.db", 0o600),
        (tmp_path / "audit.db", 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_a_kernel_whose_policy_is_wrong_does_not_start(tmp_path: Path) -> None:
    config = config_of(tmp_path, "[[allow]]\nrights = ['call']\nresources = ['toll/x']\n")
    done = subprocess.run(
        kernel_command(config, forever=True), input=kernel_input(config), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"access.toml:3: allow[0].resources" in done.stderr
    missing = config_of(tmp_path, "", access="other.toml")
    done = subprocess.run(
        kernel_command(missing, forever=True), input=kernel_input(missing), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert b"other.toml cannot be read" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="setuid to another user and SO_PEERCRED")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_is_refused_even_with_the_token(process: Process) -> None:
    path, token = socket_of(process.config), token_file_of(process.config).read_text()
    path.parent.chmod(0o711)  # as if the permissions had been opened by mistake
    path.chmod(0o666)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from aios_kernel.client import Connection\nfrom aios_kernel.errors import AiosError\n"
        "os.chdir(sys.argv[1]); os.setgid(65534); os.setuid(65534)\n"
        "try: Connection.open(Path('kernel.sock'), sys.argv[2]); print('in')\n"
        "except AiosError as error: print(error.code, error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path.parent), token], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "auth the kernel belongs to another user", done.stderr
