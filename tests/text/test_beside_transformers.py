"""Templates of our own that use what real ones use, rendered beside transformers, byte for byte."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support.conversations import CALLS, DEVELOPER, PARTS, PLAIN, TOOLS, Conversation
from tokenizers import models

from muxd.errors import BadRequest
from muxd.text.template import ChatTemplate

FOLDER = Path(__file__).parent / "templates"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TEXTS = PLAIN | CALLS
GIVEN: dict[str, dict[str, Conversation]] = {
    "schema": TEXTS,
    "reasoning": TEXTS,
    "parts": TEXTS | PARTS,
    "lists_only": {name: PARTS[name] for name in ("parts",)},
    "strict": TEXTS | {"assistant first": PLAIN["one"][:0] + PLAIN["assistant last"][1:]},
    "generation": PLAIN,
    "blocks": TEXTS,
    "developer": TEXTS | {"developer": DEVELOPER},
}
CASES = [(template, name) for template, conversations in GIVEN.items() for name in conversations]
VARIABLES: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": TOOLS},
    {"add_generation_prompt": True, "enable_thinking": False, "keep_all_reasoning": True},
]


@pytest.fixture(scope="module")
def judge() -> Any:
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **SPECIALS)


def load(template: str) -> tuple[str, ChatTemplate]:
    source = (FOLDER / f"{template}.jinja").read_text(encoding="utf-8")
    return source, ChatTemplate(source, SPECIALS, template)


def judged(judge: Any, source: str, messages: Conversation, **variables: Any) -> str:
    """What transformers renders, given arguments as its users give them: as objects. Its refusal as text."""
    messages = copy.deepcopy(messages)
    for call in (call for message in messages for call in message.get("tool_calls", [])):
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    try:
        text: str = judge.apply_chat_template(messages, chat_template=source, tokenize=False, **variables)
    except Exception as error:
        return f"refused: {error}"
    return text


@pytest.mark.parametrize(("template", "name"), CASES)
def test_our_rendering_is_transformers(judge: Any, template: str, name: str) -> None:
    source, ours = load(template)
    messages = GIVEN[template][name]
    for variables in VARIABLES:
        try:
            rendered = ours.render(messages, **variables)
        except BadRequest as error:
            rendered = f"refused: {error.message}"
        assert rendered == judged(judge, source, messages, **variables)
    assert messages == GIVEN[template][name]  # rendering changes no message


def test_a_template_that_adds_arguments_to_a_text_gets_the_text() -> None:
    _, ours = load("text_arguments")
    calls = CALLS["call"]
    arguments = calls[1]["tool_calls"][0]["function"]["arguments"]
    shown = f'user: Weather?\nCALL weather {arguments}\ntool: {{"t": 20}}\n'
    assert ours.render(calls) == shown
    assert ours.render([calls[0], calls[1] | {"content": ""}, calls[2]]) == shown


def test_a_template_that_reads_no_lists_gets_parts_joined(judge: Any) -> None:
    source, ours = load("reasoning")
    joined = [
        message | {"content": "\n".join(p["text"] for p in message["content"])} for message in PARTS["parts"]
    ]
    assert (
        ours.render(PARTS["parts"])
        == ours.render(joined)
        == judged(judge, source, joined, add_generation_prompt=True)
    )


def test_a_template_that_reads_lists_only_gets_a_text_as_a_part() -> None:
    _, ours = load("lists_only")
    assert ours.render(PLAIN["assistant last"]) == "user: Q\nassistant: A\n"


def test_a_developer_is_the_system_for_a_template_that_does_not_know_it() -> None:
    _, ours = load("schema")
    assert ours.render(DEVELOPER[:1], add_generation_prompt=False).endswith("<system>Be nice.\n")
