"""Models of random weights under grammars: every answer that ended must be right, and every one must end.

Random weights at temperature 1 are the hardest case: nothing but the grammar keeps the answer in shape.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import string
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from aios_kernel.chat.codec import TransformersCodec
from aios_kernel.engine.protocol import SamplingParams
from aios_kernel.engine.torch import TorchEngine
from aios_kernel.syscalls import LlmChat, LlmResult, Message, ToolCall, ToolSpec

USER = Message(role="user", content="hi")
MOST_TOKENS = 1500
TEMPLATES = ["hermes", "llama", "mistral", "mistral_args", "no_tools"]


class Schemas:
    """Tool schemas of the shapes that agents use, from a seed. What has no bound in reality has one here."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.definitions: dict[str, Any] = {}

    def tool(self, number: int) -> ToolSpec:
        self.definitions = {}
        parameters = self.object(depth=0)
        if self.definitions:
            parameters["$defs"] = self.definitions
        return ToolSpec(name=f"{self.word()}_{number}", description="A tool.", parameters=parameters)

    def object(self, depth: int) -> dict[str, Any]:
        names = [self.word() for _ in range(self.random.randint(1, 5 if depth == 0 else 3))]
        properties = {name: self.value(depth + 1) for name in names}
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        required = [name for name in properties if self.random.random() < 0.6]
        if required:
            schema["required"] = required
        if self.random.random() < 0.7:
            schema["additionalProperties"] = False
        return schema

    def value(self, depth: int) -> dict[str, Any]:
        kinds = [self.text, self.choice, self.whole, self.real, self.flag, self.constant, self.form]
        if depth < 3:
            kinds += [self.array, self.nested, self.optional, self.tagged, self.reference, self.several]
        schema = self.random.choice(kinds)(depth)
        return {"description": "What it is.", **schema} if self.random.random() < 0.3 else schema

    def text(self, depth: int) -> dict[str, Any]:
        low = self.random.choice([0, 0, 1, 3])
        return {"type": "string", "minLength": low, "maxLength": low + self.random.randint(1, 12)}

    def choice(self, depth: int) -> dict[str, Any]:
        words = sorted({self.word() for _ in range(self.random.randint(1, 5))})
        mixed: list[Any] = [*words, 3, None] if self.random.random() < 0.2 else words
        return {"enum": mixed} if mixed != words or self.random.random() < 0.3 else {"type": "string", "enum": words}

    def whole(self, depth: int) -> dict[str, Any]:
        low = self.random.randint(-50, 50)
        bounds = [
            {},
            {"minimum": low},
            {"minimum": low, "maximum": low + self.random.randint(0, 500)},
            {"exclusiveMinimum": low, "maximum": low + 9},
            {"multipleOf": self.random.choice([2, 5, 10])},
        ]
        return {"type": "integer", **self.random.choice(bounds)}

    def real(self, depth: int) -> dict[str, Any]:
        low = self.random.randint(-9, 9) / 4
        return {"type": "number", **self.random.choice([{}, {"minimum": low}, {"minimum": low, "maximum": low + 2.5}])}

    def flag(self, depth: int) -> dict[str, Any]:
        return {"type": "boolean"}

    def constant(self, depth: int) -> dict[str, Any]:
        return {"const": self.random.choice([self.word(), 7, True, None])}

    def form(self, depth: int) -> dict[str, Any]:
        patterns = ["^[A-Z]{3}$", "^[a-z]{1,6}_[0-9]{2}$", r"^\d{4}-\d{2}$"]
        formats = ["date", "date-time", "uuid"]
        if self.random.random() < 0.5:
            return {"type": "string", "pattern": self.random.choice(patterns)}
        return {"type": "string", "format": self.random.choice(formats)}

    def array(self, depth: int) -> dict[str, Any]:
        low = self.random.randint(0, 2)
        return {
            "type": "array",
            "items": self.value(depth + 1),
            "minItems": low,
            "maxItems": low + self.random.randint(0, 3),
        }

    def nested(self, depth: int) -> dict[str, Any]:
        return self.object(depth + 1)

    def optional(self, depth: int) -> dict[str, Any]:
        if self.random.random() < 0.5:
            return {"type": ["string", "null"], "maxLength": 8}
        return {"anyOf": [self.value(depth + 1), {"type": "null"}], "default": None}

    def tagged(self, depth: int) -> dict[str, Any]:
        branches = []
        for tag in ("a", "b"):
            branch = self.object(depth + 1)
            branch["properties"] = {"kind": {"const": tag}, **branch["properties"]}
            branch["required"] = ["kind", *branch.get("required", [])]
            branches.append(branch)
        return {self.random.choice(["anyOf", "oneOf"]): branches}

    def reference(self, depth: int) -> dict[str, Any]:
        name = self.word().title()
        self.definitions[name] = self.object(depth + 1)
        reference: dict[str, Any] = {"$ref": f"#/$defs/{name}"}
        return {"allOf": [reference]} if self.random.random() < 0.3 else reference

    def several(self, depth: int) -> dict[str, Any]:
        return {"type": "array", "prefixItems": [self.value(depth + 1), self.flag(depth)], "items": False}

    def word(self) -> str:
        return "".join(self.random.choices(string.ascii_lowercase, k=self.random.randint(2, 7)))


class Random:
    """A model of random weights with the tokenizer of the tests, answering many calls at once."""

    def __init__(self, codec: TransformersCodec, width: int, seed: int = 0) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=width, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=8192, initializer_range=0.2, bos_token_id=None,
            eos_token_id=None,
        )  # fmt: skip
        self.codec = codec
        self.engine = TorchEngine(LlamaForCausalLM(config).eval(), kv_tokens=96 * MOST_TOKENS)

    def answer(self, calls: list[LlmChat], temperature: float = 1.0) -> list[LlmResult | None]:
        """Answers, None for one that did not end; closing quotes and ends are made likely, for a human length."""
        results: list[LlmResult | None] = []
        for low in range(0, len(calls), 64):
            results += self._batch(calls[low : low + 64], temperature, low)
        return results

    def _batch(self, calls: list[LlmChat], temperature: float, low: int) -> list[LlmResult | None]:
        biases = tuple((token, 4.0) for token in [*self.codec.encode('"'), *self.codec.end_tokens])
        results: list[LlmResult | None] = [None] * len(calls)
        live: dict[int, tuple[Any, Any, list[Any]]] = {}
        for row, call in enumerate(calls):
            sampling = SamplingParams(temperature=temperature, seed=low + row, logit_bias=biases)
            context = self.engine.open([1], sampling=sampling, grammar=self.codec.grammar(call))
            live[row] = (context, self.codec.stream(call), [])
        for _ in range(MOST_TOKENS):
            outputs = self.engine.step([(context, 4) for context, _, _ in live.values()])
            for row, output in zip(list(live), outputs, strict=True):
                context, stream, pieces = live[row]
                assert output.error is None, output.error
                assert output.token is not None
                if output.token in self.codec.end_tokens:
                    pieces.append(stream.finish())
                    text = "".join(piece.text for piece in pieces)
                    made = [call for piece in pieces for call in piece.tool_calls]
                    results[row] = LlmResult("random", text, made)
                    self.engine.release(live.pop(row)[0])
                else:
                    pieces.append(stream.push(output.token))
            if not live:
                break
        for context, _, _ in live.values():
            self.engine.release(context)
        return results


@pytest.fixture(scope="module")
def make_random(codecs: Any) -> Any:
    known: dict[str, Random] = {}

    def make(template: str = "hermes") -> Random:
        if template not in known:
            codec = codecs("byte_level", template)
            known[template] = Random(codec, width=320)
        return known[template]

    return make


def check(tool: ToolSpec, call: ToolCall) -> None:
    assert call.name == tool.name
    jsonschema.Draft202012Validator(tool.parameters).validate(json.loads(call.arguments))


def one_call_each(model: Random, tools: list[ToolSpec]) -> None:
    calls = [LlmChat(messages=[USER], tools=[tool], tool_choice=tool.name) for tool in tools]
    results = model.answer(calls)
    for tool, result in zip(tools, results, strict=True):
        assert result is not None, f"{tool} did not end"
        assert (result.text, len(result.tool_calls)) == ("", 1)
        check(tool, result.tool_calls[0])


def test_tool_calls_of_many_schemas(make_random: Any) -> None:
    schemas = Schemas(1)
    one_call_each(make_random(), [schemas.tool(number) for number in range(48)])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("template", TEMPLATES)
def test_tool_calls_of_very_many_schemas(make_random: Any, template: str) -> None:
    schemas = Schemas(TEMPLATES.index(template) + 2)
    one_call_each(make_random(template), [schemas.tool(number) for number in range(240)])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_answers_of_very_many_schemas(make_random: Any) -> None:
    """The same schemas as the form of the answer itself, sampled and greedy."""
    schemas = Schemas(9)
    asked = [schemas.tool(number).parameters for number in range(240)]
    for temperature in (0.7, 1.0):
        results = make_random().answer([LlmChat(messages=[USER], schema=schema) for schema in asked], temperature)
        for schema, result in zip(asked, results, strict=True):
            assert result is not None
            jsonschema.Draft202012Validator(schema).validate(json.loads(result.text))


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("parallel", [True, False])
def test_required_means_calls_and_named_means_that_one(make_random: Any, template: str, parallel: bool) -> None:
    schemas = Schemas(7)
    tools = [schemas.tool(number) for number in range(3)]
    by_name = {tool.name: tool for tool in tools}
    required = LlmChat(messages=[USER], tools=tools, tool_choice="required", parallel_tool_calls=parallel)
    named = LlmChat(messages=[USER], tools=tools, tool_choice=tools[1].name, parallel_tool_calls=parallel)
    results = make_random(template).answer([required] * 6 + [named] * 2)
    for result in results:
        assert result is not None
        assert result.text == ""
        for call in result.tool_calls:
            check(by_name[call.name], call)
    counts = [len(result.tool_calls) for result in results if result is not None]
    assert min(counts) == 1
    assert counts[6:] == [1, 1]
    if not parallel:
        assert counts == [1] * 8
    assert {call.name for result in results[6:] if result for call in result.tool_calls} == {tools[1].name}


def test_none_means_no_call(make_random: Any) -> None:
    call = LlmChat(messages=[USER], tools=[Schemas(1).tool(0)], tool_choice="none", choice=["yes", "no"])
    assert {result and result.text for result in make_random().answer([call] * 8)} <= {"yes", "no"}


def test_a_model_that_knows_no_tools_calls_them_rightly_or_not_at_all(make_random: Any) -> None:
    """Free text with `tool_choice="auto"`: what begins as a call becomes one."""
    model, tool = make_random("no_tools"), Schemas(3).tool(0)
    (marker,) = model.codec.encode("<tool_call>")
    call = LlmChat(messages=[USER], tools=[tool], parallel_tool_calls=False)
    grammar = model.codec.grammar(call)
    for token in [*model.codec.encode("Let me\tsee: "), marker]:
        grammar.accept(token)
    for seed in range(5):
        context = model.engine.open([1], sampling=SamplingParams(temperature=1.0, seed=seed), grammar=grammar.fork())
        stream = model.codec.stream(call)
        pieces = [stream.push(marker)]
        for _ in range(MOST_TOKENS):
            (output,) = model.engine.step([(context, 1)])
            if output.token in model.codec.end_tokens:
                break
            pieces.append(stream.push(output.token))
        (made,) = [made for piece in [*pieces, stream.finish()] for made in piece.tool_calls]
        check(tool, made)


# --- recorded workloads ---------------------------------------------------------------------------------------------


def recorded_calls() -> dict[str, list[dict[str, Any]]]:
    """Arguments by tool of tau-bench's airline trajectories (sierra-research/tau-bench, MIT)."""
    data = os.environ.get("AIOS_DATA")
    path = Path(data or ".") / "tau_airline" / "trajectories.json.gz"
    if not data or not path.is_file():
        pytest.skip("AIOS_DATA has no tau_airline; see https://github.com/sierra-research/tau-bench")
    calls: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trajectory in json.loads(gzip.decompress(path.read_bytes())):
        for message in trajectory["traj"]:
            for call in message.get("tool_calls") or ():
                calls[call["function"]["name"]].append(json.loads(call["function"]["arguments"]))
    return calls


def derived(values: list[Any]) -> dict[str, Any]:
    """The narrowest simple schema of some values."""
    kinds = {type(value) for value in values}
    if kinds == {dict}:
        names = {name for value in values for name in value}
        return {
            "type": "object",
            "properties": {name: derived([value[name] for value in values if name in value]) for name in sorted(names)},
            "required": sorted(name for name in names if all(name in value for value in values)),
            "additionalProperties": False,
        }
    if kinds == {list}:
        longest = max(len(value) for value in values)
        return {"type": "array", "items": derived([part for value in values for part in value]), "maxItems": longest}
    if kinds == {str}:
        words = sorted(set(values))
        if len(words) <= 4 and len(values) >= 10:
            return {"enum": words}
        # xgrammar allows no escapes in a string of limited length.
        plain = all(len(json.dumps(word, ensure_ascii=False)) == len(word) + 2 for word in words)
        return {"type": "string", **({"maxLength": max(len(word) for word in words)} if plain else {})}
    numbers = {int: "integer", float: "number"}
    if kinds <= set(numbers):
        return {"type": "number" if float in kinds else "integer", "minimum": min(values), "maximum": max(values)}
    return {"enum": list(dict.fromkeys(values))}


def spelled(calls: list[dict[str, Any]]) -> Iterator[str]:
    for arguments in calls:
        yield json.dumps(arguments, ensure_ascii=False, sort_keys=True)


def test_recorded_calls_are_allowed_and_random_ones_are_valid(make_random: Any) -> None:
    model, recorded = make_random(), recorded_calls()
    tools = [ToolSpec(name=name, parameters=derived(calls)) for name, calls in sorted(recorded.items())]
    assert len(tools) >= 10
    for tool in tools:
        call = LlmChat(messages=[USER], tools=[tool], tool_choice=tool.name)
        start = model.codec.grammar(call)
        for arguments in list(spelled(recorded[tool.name]))[:10]:
            grammar = start.fork()
            text = f'<tool_call>\n{{"name": "{tool.name}", "arguments": {arguments}}}\n</tool_call>'
            for token in model.codec.encode(text):
                grammar.accept(token)
            grammar.accept(min(model.codec.end_tokens))
    one_call_each(model, tools)
