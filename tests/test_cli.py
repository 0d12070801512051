"""The command line against a real kernel process, as a user types it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

AIOS = str(Path(sys.executable).parent / "aios")
SETTINGS = {"AIOS_MODEL": "fake", "AIOS_EMBEDDER": "hash", "AIOS_VECTORS": "exact", "AIOS_GRACE_S": "0.5"}
AGENT = """
import sys
import aios_adapters as aios
from aios_kernel.syscalls import LlmChat, Message

@aios.agent(name="worker")
def work(text):
    print(aios.current().chat(LlmChat(messages=[Message("user", text)])).text, flush=True)

work("say " + sys.argv[1])
"""


class Shell:
    """Runs `aios` with a data directory of its own."""

    def __init__(self, home: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
        self.environment = clean | SETTINGS | {"AIOS_HOME": str(home)}
        self.home = home
        self.serving: subprocess.Popen[str] | None = None

    def __call__(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run([AIOS, *arguments], env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen([AIOS, *arguments], env=self.environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


@pytest.fixture
def served(shell: Shell) -> Generator[Shell, None, None]:
    kernel = shell.serving = shell.start("serve")
    assert kernel.stdout is not None
    assert "serving fake" in kernel.stdout.readline()
    yield shell
    if kernel.poll() is None:
        kernel.send_signal(signal.SIGINT)
    kernel.stdout.close()
    assert kernel.wait(20) == 0


def test_run_shows_what_the_agents_did(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    output = shell("run", str(file), "hello")
    assert "hello" in output
    assert "worker" in output
    assert "LLM CALLS" in output


def test_listings_have_json(served: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    served("run", str(file), "hello", "--quiet")
    (row,) = json.loads(served("ps", "--json"))["programs"]
    assert (row["agent"], row["state"], row["llm_calls"]) == ("worker", "finished", 1)
    spans = json.loads(served("trace", "--json"))
    assert [span["syscall"] for span in spans] == ["agent.spawn", "llm.chat", "agent.exit"]
    assert json.loads(served("trace", row["program"], "--json")) == spans
    target = tmp_path / "trace.json"
    served("trace", "--perfetto", str(target))
    events = json.loads(target.read_text())["traceEvents"]
    assert {"llm.chat", "thread_name"} <= {event["name"] for event in events}
    drawn = tmp_path / "trace.html"
    assert "open it in a browser" in served("trace", "--html", str(drawn))
    assert "worker" in drawn.read_text()
    assert "worker" in served("ps")
    assert "llm.chat" in served("trace")


NOTES = """
from aios_adapters import Memory

with Memory("ann") as memory:
    memory.add("the safe is behind the picture", id="safe")
    memory.add("tea is in the kitchen")
"""


def test_notes_are_listed_found_moved_and_taken_back(served: Shell, tmp_path: Path) -> None:
    assert json.loads(served("memory", "list", "--json")) == []
    done = subprocess.run(
        [sys.executable, "-c", NOTES], env=served.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(served("memory", "list", "--json")) == [{"namespace": "agent/ann", "notes": 2, "searchable": 2}]
    listed = json.loads(served("memory", "list", "agent/ann", "--json"))
    assert [note["text"] for note in listed] == ["the safe is behind the picture", "tea is in the kitchen"]
    (found,) = json.loads(served("memory", "search", "agent/ann", "where is the safe?", "-k", "1", "--json"))
    assert (found["id"], found["author"]) == ("safe", "ann")
    assert json.loads(served("memory", "show", "agent/ann", "safe", "--json"))["text"] == found["text"]
    assert "behind the picture" in served("memory", "show", "agent/ann", "safe")
    for plain in (("list",), ("list", "agent/ann"), ("search", "agent/ann", "safe")):
        assert "ann" in served("memory", *plain)
    file = tmp_path / "notes.jsonl"
    assert "2 notes" in served("memory", "export", "agent/ann", str(file))
    assert "2 notes" in served("memory", "import", "group/team", str(file))
    assert len(json.loads(served("memory", "list", "group/team", "--json"))) == 2
    assert "of 4 notes" in served("memory", "reindex", "--wait")
    assert json.loads(served("memory", "reindex", "--progress", "--json"))["left"] == 0
    undone = json.loads(served("memory", "rollback", "ann", "--since", "10m", "--json"))
    assert undone["notes"] == {"agent/ann": 2, "group/team": 0}
    assert json.loads(served("memory", "list", "agent/ann", "--json")) == []
    assert "no namespace" in served("memory", "list", "ann", status=1)
    assert "neither a date" in served("memory", "rollback", "ann", "--since", "soon", status=2)
    assert "no note" in served("memory", "show", "agent/ann", "gone", status=1)


def test_a_backup_of_a_running_kernel_comes_back_elsewhere(served: Shell, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOTES], env=served.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(served("backup", str(tmp_path / "copy"), "--json"))
    assert "memory.db" in {kept["name"] for kept in saved["databases"]}
    assert "something in it" in served("backup", str(tmp_path / "copy"), status=1)
    assert "memory.db" in served("restore", str(tmp_path / "copy"), "--home", str(tmp_path / "new"))
    other = Shell(tmp_path / "new")
    kernel = other.start("serve")
    assert kernel.stdout is not None
    kernel.stdout.readline()
    found = json.loads(other("memory", "search", "agent/ann", "where is the safe?", "-k", "1", "--json"))
    kernel.send_signal(signal.SIGINT)
    kernel.stdout.close()
    assert kernel.wait(20) == 0
    assert [note["id"] for note in found] == ["safe"]


def test_a_mounted_folder_is_found_through_the_kernel(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "tea.md").write_text("Green tea is made with water of eighty degrees.")
    (tmp_path / "aios.toml").write_text(f'[mounts]\n"agent/reader" = "{tmp_path}/papers"\n')
    kernel = subprocess.Popen([AIOS, "serve"], env=shell.environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert kernel.stdout is not None
    kernel.stdout.readline()
    found: list[Any] = []
    deadline = time.monotonic() + 30
    while not found and time.monotonic() < deadline:
        time.sleep(0.2)
        found = json.loads(shell("memory", "search", "agent/reader/files", "green tea", "-k", "1", "--json"))
    kernel.send_signal(signal.SIGINT)
    kernel.stdout.close()
    assert kernel.wait(20) == 0
    assert found[0]["metadata"]["path"] == "tea.md"


def test_looking_at_notes_starts_no_kernel(shell: Shell) -> None:
    assert "aios serve" in shell("memory", "list", status=1)


def test_what_is_served_has_an_http_front_on_a_socket(served: Shell) -> None:
    there = httpx.HTTPTransport(uds=str(served.home / "run" / "http.sock"))
    with httpx.Client(transport=there, base_url="http://localhost") as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["fake"]


def test_serve_says_where_its_front_is(shell: Shell) -> None:
    kernel = shell.start("serve", "--http", "unix,127.0.0.1:0")
    assert kernel.stdout is not None
    with kernel.stdout:
        said = kernel.stdout.readline()
        assert f"unix:{shell.home}/run/http.sock" in said
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*/v1", said)
        assert found
        assert httpx.get(f"{found.group()}/models").status_code == 401
        kernel.send_signal(signal.SIGINT)
        assert kernel.wait(20) == 0


def test_run_refuses_a_kernel_with_another_policy(served: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    refused = served("run", "--policy", "fifo", str(file), "hello", status=1)
    assert 'schedules by "program", not "fifo"' in refused
    assert "fix: aios config policy fifo" in refused
    served("config", "policy", "fifo")
    assert "hello" in served("run", "--policy", "fifo", str(file), "hello")


def test_a_second_kernel_says_who_owns_the_directory(served: Shell) -> None:
    output = served("serve", status=1)
    assert "another kernel" in output
    assert "fix:" in output


def test_serve_takes_over_from_a_kernel_whose_clients_have_gone(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    shell.environment["AIOS_GRACE_S"] = "60"
    shell("run", str(file), "hello", "--quiet")
    kernel = shell.start("serve")
    assert kernel.stdout is not None
    assert "makes room" in kernel.stdout.readline()
    assert "serving fake" in kernel.stdout.readline()
    kernel.send_signal(signal.SIGINT)
    kernel.stdout.close()
    assert kernel.wait(20) == 0


def test_serve_leaves_a_kernel_alone_that_has_clients(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text("import sys\nprint('here', flush=True)\nsys.stdin.read()\n")
    agent = subprocess.Popen(
        [AIOS, "run", str(file)],
        env=shell.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert agent.stdout is not None
    assert agent.stdout.readline() == "here\n"
    output = shell("serve", status=1)
    assert "1 other clients" in output
    assert "fix:" in output
    agent.communicate(timeout=20)
    assert agent.returncode == 0


def test_kill(served: Shell) -> None:
    assert "fix: aios ps" in served("kill", "nobody", status=1)
    served("kill", "--kernel")
    assert served.serving is not None
    assert served.serving.wait(20) == 0


def test_ctrl_c_in_the_middle_of_a_stream(served: Shell, tmp_path: Path) -> None:
    file = tmp_path / "streaming.py"
    file.write_text(
        # A shell's background job, as a CI may be, ignores ctrl-C, and so does what it starts.
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import aios_adapters as aios\n"
        "from aios_kernel.syscalls import LlmChat, Message\n"
        "@aios.agent(name='streamer')\n"
        "def work():\n"
        "    for piece in aios.current().stream(LlmChat(messages=[Message('user', 'ponder')])):\n"
        "        print('piece', flush=True)\n"
        "work()\n"
    )
    streaming = subprocess.Popen(
        [sys.executable, str(file)],
        env=served.environment | {"AIOS_KERNEL": "auto"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert streaming.stdout is not None
    streaming.stdout.readline()
    streaming.send_signal(signal.SIGINT)
    _, errors = streaming.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors
    ends_at = time.monotonic() + 10
    while (row := json.loads(served("ps", "--json"))["programs"][0])["state"] != "finished":
        assert time.monotonic() < ends_at
    assert "KeyboardInterrupt" in row["error"]
    kernel = json.loads(served("ps", "--json"))["kernel"]
    assert kernel["kv_free_tokens"] == kernel["kv_tokens"]


def test_the_audit_log_is_listed_exported_and_verified(served: Shell, tmp_path: Path) -> None:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    served("run", str(file), "hello", "--quiet")
    listed = json.loads(served("audit", "list", "--agent", "worker", "--json"))
    assert [(record["syscall"], record["outcome"]) for record in listed if record["syscall"] == "llm.chat"] == [
        ("llm.chat", "ok")
    ]
    assert "llm.chat" in served("audit", "list")
    served("audit", "export", str(tmp_path / "audit.jsonl"), "--agent", "worker")
    exported = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [record["seq"] for record in exported] == [record["seq"] for record in listed]
    assert "none changed" in served("audit", "verify")
    assert json.loads(served("audit", "verify", "--json"))["ok"] is True
    with contextlib.closing(sqlite3.connect(served.home / "audit.db")) as db, db:
        db.execute("UPDATE audit SET outcome = 'denied' WHERE seq = ?", (listed[0]["seq"],))
    assert f"record {listed[0]['seq']} was changed" in served("audit", "verify", status=1)


def test_an_audit_log_is_verified_without_a_kernel(served: Shell, tmp_path: Path) -> None:
    assert served.serving is not None
    served("ps")
    served.serving.send_signal(signal.SIGINT)
    served.serving.wait(20)
    public = (served.home / "audit.seals" / "audit.pub").read_text().strip()
    arguments = ("audit", "verify", "--offline", str(served.home), "--public", public)
    assert "none changed" in served(*arguments)
    (served.home / "audit.seals").rename(tmp_path / "seals")
    assert "never sealed" in served(*arguments, status=1)
    assert "none changed" in served(*arguments, "--seals", str(tmp_path / "seals"))
    with contextlib.closing(sqlite3.connect(served.home / "audit.db")) as db, db:
        db.execute("DELETE FROM audit WHERE seq = 1")
    assert "record 1 was changed" in served(*arguments, "--seals", str(tmp_path / "seals"), status=1)
    assert "there is no audit log" in served("audit", "verify", "--offline", str(tmp_path), status=2)


def test_without_a_kernel(shell: Shell) -> None:
    assert "fix: aios serve" in shell("ps", status=1)
    assert "fix: aios serve" in shell("trace", status=1)


def test_the_trace_outlasts_its_kernel(shell: Shell, tmp_path: Path) -> None:
    """The kernel of an agent leaves with it: what it did is still to be seen."""
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    shell("run", "--quiet", str(file), "hello")
    ends_at = time.monotonic() + 20
    while (
        "no kernel answers"
        not in subprocess.run([AIOS, "ps"], env=shell.environment, capture_output=True, text=True, check=False).stderr
    ):
        assert time.monotonic() < ends_at
    with next((shell.home / "traces").glob("*.jsonl")).open("a") as trace:
        trace.write('{"program": "cut o')
    shown = shell("trace")
    assert "no kernel runs; the last one wrote" in shown
    assert re.search(r"worker +llm\.chat", shown)
    drawn = tmp_path / "trace.html"
    assert "open it in a browser" in shell("trace", "--html", str(drawn))
    assert "worker" in drawn.read_text()


@pytest.mark.slow
def test_a_kernel_ends_without_complaints(shell: Shell) -> None:
    """Libraries look for what they have not got back when the interpreter ends, and say so."""
    kernel = subprocess.Popen(
        [AIOS, "serve", "demo"], env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert kernel.stdout is not None
    assert "serving demo" in kernel.stdout.readline()
    kernel.send_signal(signal.SIGINT)
    _, said = kernel.communicate(timeout=60)
    assert kernel.returncode == 0
    assert "leaked" not in said
    assert said.splitlines()[-1].endswith("stopped")


def test_config_says_where_values_come_from(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aios.toml").write_text('policy = "round_robin"\nmodel = "other"\n')
    monkeypatch.chdir(tmp_path)
    rows = {row["key"]: row for row in json.loads(shell("config", "show", "--json"))}
    assert (rows["policy"]["value"], rows["policy"]["from"]) == ("round_robin", str(tmp_path / "aios.toml"))
    assert (rows["model"]["value"], rows["model"]["from"]) == ("fake", "AIOS_MODEL")
    assert rows["dtype"]["from"] == "default"
    (tmp_path / "aios.toml").write_text('polcy = "fifo"\n')
    refused = shell("config", "show", status=1)
    assert refused.startswith("error: ")  # no traceback
    assert 'did you mean "policy"' in refused
    assert f"fix: edit {tmp_path / 'aios.toml'}" in refused


def test_config_shows_plain_values(shell: Shell) -> None:
    shell.environment |= {"AIOS_LIMITS": '{"agents": {"ann": {"calls": 2}}}', "AIOS_STRICT": "1"}
    values = {row["key"]: row["value"] for row in json.loads(shell("config", "show", "--json"))}
    assert values["limits"]["agents"]["ann"]["calls"] == 2
    assert values["server_hints"]["slice_tokens"] == 0
    shown = shell("config", "show")
    assert "(" not in shown, "no Python objects"
    assert re.search(r'^limits +{"agents":{"ann":{', shown, re.MULTILINE)
    assert re.search("^strict +true +AIOS_STRICT *$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "said"),
    [("passthru", 'did you mean "passthrough"?'), ("OFF", '"off"?'), ("elsewhere", "there are: auto, ")],
)
def test_a_kernel_that_is_misspelt(shell: Shell, word: str, said: str) -> None:
    """A bare word is no socket's path."""
    shell.environment["AIOS_KERNEL"] = word
    refused = shell("ps", status=1)
    assert f'kernel = "{word}" (AIOS_KERNEL)' in refused
    assert said in refused
    assert "fix: unset AIOS_KERNEL, or correct it" in refused


def test_the_doctor_sees_a_configuration_that_is_wrong(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aios.toml").write_text("policy = \n")
    monkeypatch.chdir(tmp_path)
    checks = {check["what"]: check for check in json.loads(shell("doctor", "--json", status=1))}
    assert not checks["configuration"]["ok"]
    assert checks["configuration"]["fix"] == f"edit {tmp_path / 'aios.toml'}"
    assert checks["python"]["ok"]


def test_config_shows_no_secrets(shell: Shell) -> None:
    shell.environment |= {"AIOS_TOKEN": "hush-1", "AIOS_API_KEY": "hush-2"}
    shown = shell("config", "show", "--json") + shell("config", "show")
    assert "hush" not in shown
    values = {row["key"]: row["value"] for row in json.loads(shell("config", "show", "--json"))}
    assert (values["token"], values["api_key"]) == ("***", "***")


def test_plugins_and_doctor(shell: Shell) -> None:
    rows = json.loads(shell("plugins", "--json"))
    assert {"langchain", "autogen", "llamaindex", "openai"} <= {row["adapter"] for row in rows}
    checks = json.loads(shell("doctor", "--json"))
    assert all(check["ok"] for check in checks), [check for check in checks if not check["ok"]]
    assert any(check["found"] == "hooked" for check in checks)
    found = {check["what"]: check["found"] for check in checks}
    assert "bwrap" in found["tools at level sandbox"]
    assert "podman" in found["tools at level container"]
