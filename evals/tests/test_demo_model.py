"""The demo model: its data, its chat template, and the shipped weights."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from aios_evals.demo_model.agent import Model, parse_calls, run_all
from aios_evals.demo_model.batches import IGNORED, labels, render
from aios_evals.demo_model.data import Conversation, call_text, conversation, messages, schema
from aios_evals.demo_model.evaluate import SHIPPED, held_out, score
from aios_evals.demo_model.script import JOBS, Call, Turn
from aios_evals.demo_model.tokenizer import ASSISTANT, END, build_tokenizer
from aios_evals.demo_model.tools import PRICES, TOOL_ARGUMENTS, Notes, calculator, lookup
from aios_evals.demo_model.words import Words, is_held_out
from aios_evals.demo_model.world import World

NO_TOOLS = "<|bos|><|tools|><|no_calculator|><|no_lookup|><|no_recall|><|no_remember|><|end|>"
CAFE = "caf\u00e9 & 7"
ALL_TOOLS = [schema(name) for name in TOOL_ARGUMENTS]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(SHIPPED)


def rendered(tokenizer: Any, history: list[dict[str, Any]], tools: list[Any] | None = None, prompt: bool = True) -> str:
    return tokenizer.apply_chat_template(history, tools=tools, add_generation_prompt=prompt, tokenize=False)


# The data


def test_a_seed_gives_one_conversation() -> None:
    assert conversation(7, "train") == conversation(7, "train")
    assert conversation(7, "train") != conversation(8, "train")
    assert conversation(7, "train") != conversation(7, "heldout")


@pytest.mark.parametrize("draw", ["name", "entity", "code", "sentence", "expression"])
def test_splits_share_no_words(draw: str) -> None:
    train, held = Words(1, "train"), Words(1, "heldout")
    seen = {getattr(train, draw)() for _ in range(500)}
    unseen = {getattr(held, draw)() for _ in range(200)}
    assert not any(map(is_held_out, seen))
    assert all(map(is_held_out, unseen))
    assert seen.isdisjoint(unseen)


@pytest.mark.parametrize("kind", ["calc", "price", "look_up", "cost", "together", "cost_kept", "calc_kept"])
def test_splits_share_no_questions(kind: str) -> None:
    train = {conversation(seed, "train", [kind]).turns[0].question for seed in range(300)}
    held = {conversation(seed, "heldout", [kind]).turns[0].question for seed in range(300)}
    assert train.isdisjoint(held)


@pytest.mark.parametrize("kind", [kind for kind, spec in JOBS.items() if not spec.follows])
def test_every_job_can_be_generated(kind: str) -> None:
    kinds = {conversation(seed, "train", [kind]).turns[0].kind for seed in range(30)}
    assert kind in kinds
    assert kinds <= {kind, "no_tool"}


def test_only_the_assistant_is_learnt(tokenizer: Any) -> None:
    talk = next(talk for seed in range(50) if (talk := conversation(seed, "train")).turns[0].steps)
    ids = tokenizer(render(tokenizer, talk))["input_ids"]
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT, END])
    learnt = tokenizer.decode([token for token in labels(ids, assistant, end, False) if token != IGNORED])
    said = [m for m in messages(talk) if m["role"] == "assistant"]
    assert learnt.count(END) == len(said)
    assert learnt.startswith(call_text(talk.turns[0].steps[0][0].tool, talk.turns[0].steps[0][0].argument))
    assert talk.turns[0].question not in learnt


# The tools


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("17 * 23", "391"),
        ("3 * 14.5", "43.5"),
        ("10 / 4", "2.5"),
        ("-2 + 2", "0"),
        ("(1+2)*3", "9"),
        ("0.1+0.2", "0.3"),
    ],
)
def test_calculator(expression: str, result: str) -> None:
    assert calculator(expression) == result


@pytest.mark.parametrize("text", ["1 / 0", "__import__('os')", "2 ** 9", "a + 1", "", "(" * 190, "9" * 300, "True + 1"])
def test_calculator_refuses(text: str) -> None:
    assert calculator(text).startswith("error:")


def test_lookup_and_notes() -> None:
    assert lookup("zebra-42") == PRICES["zebra-42"]
    assert lookup("unicorn") == "not found: unicorn"
    notes = Notes(["the code of Bob is 1", "the code of Anna is 2"])
    assert notes.recall("the code of Anna").split("\n")[0] == "the code of Anna is 2"
    assert notes.recall("weather") == "no notes found"


# The chat template


@pytest.mark.parametrize("content", ["hi", [{"type": "text", "text": "hi"}], ["h", "i"], " hi\n"])
def test_template_takes_every_content(tokenizer: Any, content: Any) -> None:
    assert rendered(tokenizer, [{"role": "user", "content": content}]) == (f"{NO_TOOLS}<|user|>hi<|end|><|assistant|>")


def test_template_ignores_system_messages_and_the_order_of_tools(tokenizer: Any) -> None:
    user = {"role": "user", "content": "hi"}
    system = {"role": "system", "content": "Reply with TERMINATE."}
    tools = [schema("zoo"), *ALL_TOOLS, {"name": "flat", "parameters": {}}]
    expected = (
        "<|bos|><|tools|><|calculator|><|lookup|><|recall|><|remember|><|other|>flat<|other|>zoo<|end|>"
        "<|user|>hi<|end|><|assistant|>"
    )
    assert rendered(tokenizer, [system, user], tools) == expected
    assert rendered(tokenizer, [user], tools[::-1]) == expected


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("arguments", [{"item": CAFE}, f'{{"item": "{CAFE}"}}', f'{{"item":"{CAFE}"}}'])
def test_template_writes_calls_as_the_model_does(tokenizer: Any, content: Any, arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": arguments}}
    text = rendered(tokenizer, [{"role": "assistant", "content": content, "tool_calls": [call]}], prompt=False)
    assert text.endswith(f"<|assistant|>{call_text('lookup', CAFE)}<|end|>")


@pytest.mark.parametrize(
    ("content", "text"),
    [("14.5", "14.5"), ("", ""), (None, ""), ({"a": 1}, '{"a": 1}'), ([{"text": "x"}], "x"), (5, "5")],
)
def test_template_takes_every_tool_result(tokenizer: Any, content: Any, text: str) -> None:
    history = [{"role": "tool", "tool_call_id": "1", "content": content}]
    assert rendered(tokenizer, history).endswith(f"<|tool|>{text}<|end|><|assistant|>")


@pytest.mark.parametrize("seed", range(40))
def test_prompt_and_answer_are_a_token_prefix_of_the_next_prompt(tokenizer: Any, seed: int) -> None:
    talk = conversation(seed, "heldout")
    tools = [schema(name) for name in talk.tools]
    history = messages(talk)
    whole = tokenizer(rendered(tokenizer, history, tools, prompt=False))["input_ids"]
    for at, message in enumerate(history):
        if message["role"] == "assistant":
            calls = [call["function"] for call in message.get("tool_calls", [])]
            said = "".join(call_text(c["name"], *c["arguments"].values()) for c in calls) or message["content"]
            prompt = tokenizer(rendered(tokenizer, history[:at], tools))["input_ids"]
            spoken = prompt + tokenizer(said)["input_ids"] + [tokenizer.eos_token_id]
            assert whole[: len(spoken)] == spoken


def test_every_byte_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "".join(map(chr, range(32, 127))) + '\u00e9 \u03bb \u65e5 \U0001f993 \t\n {"name": "lookup"} "}}'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# The shipped model


def test_shipped_files_are_small_and_safe() -> None:
    files = {file.name: file.stat().st_size for file in SHIPPED.iterdir()}
    assert sum(files.values()) < 4_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= files.keys()
    assert not [name for name in files if Path(name).suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
    assert json.loads((SHIPPED / "generation_config.json").read_text())["do_sample"] is False


def test_shipped_tokenizer_is_the_one_the_code_builds(tokenizer: Any, model: Model) -> None:
    assert model.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert model.tokenizer.chat_template == tokenizer.chat_template
    assert model.model.config.max_position_embeddings >= 2048


@pytest.mark.slow
def test_exact_on_held_out_prompts(model: Model) -> None:
    result = score(model, held_out(100, first=100_000))
    # The shipped weights give exactly 98 here; another machine's rounding may cost one.
    assert result["exact"] >= 97, result["mistakes"]


NAMES = ["zebra-42", "O'Neil", "A/B_switch.v2", "K7-x#9", "C++", "caf\u00e9:7&8", "green tea"]


@pytest.mark.parametrize("name", NAMES)
def test_names_survive_from_question_to_answer(model: Model, name: str) -> None:
    world = World(prices={name: "14.5"}, notes=[f"the code of {name} is K7-x#9"])
    steps = [[Call("lookup", name, "14.5")], [Call("calculator", "3 * 14.5", "43.5")]]
    cost = Turn("cost", f"What do 3 {name} cost?", steps, f"3 {name} cost 43.5.", world)
    query = [[Call("recall", f"the code of {name}", "")]]
    code = Turn("recall", f"What is the code of {name}?", query, f"I found: the code of {name} is K7-x#9", world)
    runs = run_all(model, [Conversation(sorted(TOOL_ARGUMENTS), [turn]) for turn in (cost, code)])
    assert [run.mistake for run in runs] == ["", ""]


def test_calls_are_parsed_strictly() -> None:
    two = call_text("calculator", "1 + 2") + call_text("lookup", 'a"b')
    assert parse_calls(two) == [("calculator", {"expression": "1 + 2"}), ("lookup", {"item": 'a"b'})]
    assert parse_calls("The price is 3.") == []
    assert parse_calls("<tool_call>{broken</tool_call>") is None
