"""The HTTP front against its own OpenAPI description, with cases that schemathesis draws from it and from its opposite.

No case may bring an answer of 5xx, nor one that the description does not have. A body that does not fit its schema is
refused; one that fits is served, or refused for a reason of `BEYOND_SCHEMAS`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from aios_kernel.config import Config, token_file_of
from aios_kernel.server.inprocess import InProcessKernel

pytestmark = pytest.mark.outside

GUEST = "schema-guest"
ASKED = {"/v1/chat/completions": 1900, "/v1/responses": 1800, "/v1/embeddings": 900}
"""Cases of each mode in the long run; with those below 10,000."""
RULES = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
LOOKED = {"/v1/models": 100, "/v1/models/{model}": 400}

BEYOND_SCHEMAS = [
    r"two tools are called",
    r"tool_choice (is required, but|names the tool)",
    r"asks for text, but tool_choice",
    r"cannot hold the same answer",
    r"one of the strings in choice is empty",
    r"choosing a tool called",
    r"top_logprobs needs logprobs",
    r"max_tokens and max_completion_tokens say different",
    r"several structures of one answer",
    r"a chat needs at least one message",  # input of thoughts alone
    r"n is above 1, but the answer is forced",
    r"regular expressions",  # the fake engine has none
    r"JSON schema",  # of a tool or an answer: whether it can be held
    r"there is no text to embed|text \d+ is empty",
    r"prompt_logprobs",  # the fake engine has none
]
"""What no schema says, and is refused all the same."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, str], None, None]:
    """URL and token of a kernel with the fake engine."""
    config = Config(
        kernel="inprocess", home=str(tmp_path_factory.mktemp("aios")), model="fake", embedder="hash", vectors="exact",
        http="127.0.0.1:0", principals={"guest": hashlib.sha256(GUEST.encode()).hexdigest()},
    )  # fmt: skip
    running = InProcessKernel(config)
    assert running.kernel is not None
    yield str(running.kernel.http_url), token_file_of(config).read_text()
    running.stop()


@pytest.fixture(scope="module")
def document(front: tuple[str, str]) -> dict[str, Any]:
    """What the front says of itself; no token is needed to read it."""
    return httpx.get(f"{front[0]}/openapi.json").json()


def fits(document: dict[str, Any], path: str, sent: Any) -> bool:
    """Whether a body is what the description asks for, by another library's reading of it."""
    try:
        body = json.loads(sent)
    except (TypeError, ValueError):
        return False
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return Draft202012Validator({**content["schema"], "components": document["components"]}).is_valid(body)


def check(document: dict[str, Any], case: Any, answer: requests.Response) -> None:
    """The rules of this file for one case."""
    case.validate_response(answer, checks=CHECKS.get_by_names(RULES))
    if case.method != "POST":
        return
    sent = answer.request.body
    if not fits(document, case.path, sent):
        assert 400 <= answer.status_code < 500, f"accepted: {sent!r}"
    elif answer.status_code != 200 and case.meta.generation.mode is GenerationMode.POSITIVE:
        message = answer.json()["error"]["message"]
        assert any(re.search(reason, message) for reason in BEYOND_SCHEMAS), f"{message}\nrefused: {sent!r}"


def run(front: tuple[str, str], document: dict[str, Any], path: str, mode: GenerationMode, cases: int) -> int:
    """Send so many cases; gives how many were sent."""
    operation = schemathesis.openapi.from_dict(document)[path]["POST" if path in ASKED else "GET"]
    session, sent = requests.Session(), 0

    @settings(
        max_examples=cases,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        derandomize=True,
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        nonlocal sent
        sent += 1
        headers = {**(case.headers or {}), "Authorization": f"Bearer {front[1]}"}
        check(document, case, case.call(base_url=front[0], session=session, headers=headers))

    with session:
        send()
    return sent


MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", [*ASKED, *LOOKED])
def test_some_cases(front: tuple[str, str], document: dict[str, Any], path: str, mode: GenerationMode) -> None:
    assert run(front, document, path, mode, 40) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_cases(front: tuple[str, str], document: dict[str, Any]) -> None:
    sent = {
        (path, mode.name): run(front, document, path, mode, cases)
        for path, cases in {**ASKED, **LOOKED}.items()
        for mode in MODES
    }
    print(sent)
    assert sum(sent.values()) >= 10_000


# --- nothing is ignored ---------------------------------------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/embeddings": {"model": "m", "input": "hi"},
}
PARAMETERS: dict[str, Any] = {
    "/v1/chat/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/responses": response_create_params.ResponseCreateParamsNonStreaming,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
}


def named(path: str) -> set[str]:
    """Every parameter that OpenAI's SDK knows of an endpoint."""
    return set(get_type_hints(PARAMETERS[path])) - {"stream"}


@pytest.mark.parametrize("path", [*BODIES])
def test_every_parameter_of_openais_is_described_or_refused_by_name(
    front: tuple[str, str], document: dict[str, Any], path: str
) -> None:
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    described = set(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"])
    with httpx.Client(base_url=front[0], headers={"authorization": f"Bearer {front[1]}"}) as http:
        refused = set[str]()
        for name in named(path):
            answer = http.post(path, json={**BODIES[path], name: {"unlikely": "value"}})
            if answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported":
                assert name in answer.json()["error"]["message"]
                assert "fix: " in answer.json()["error"]["message"]
                refused.add(name)
        assert named(path) - described <= refused, "ignored"
        assert refused & set(BODIES[path]) == set()
        assert http.post(path, json=BODIES[path] | {"no_such_field": 1}).status_code == 400
        assert http.post(path, json=BODIES[path] | {"no_such_field": None}).status_code == 200


def test_the_description_is_valid(document: dict[str, Any], tmp_path: Path) -> None:
    assert document["openapi"].startswith("3.1")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    text = json.dumps(document)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]
