"""What an answer may be held to: taken, or refused within bounds and with a reason."""

import json

import pytest
import tokenizers
from support.forms import PATTERNS, schemas

from muxd.api.constraint import constraint_of
from muxd.api.schemas import CompletionRequest
from muxd.errors import BadRequest
from muxd.messages import Constraint, ConstraintKind
from muxd.text.constraint import MOST, problem
from muxd.text.library import TextModel
from muxd.text.tokenizer import Tokenizer
from muxd.text.work import Source, View


def test_what_is_served() -> None:
    for schema in schemas(200):
        assert not problem(Constraint("json_schema", json.dumps(schema))), schema
    for pattern in PATTERNS:
        assert not problem(Constraint("regex", pattern)), pattern
    assert not problem(Constraint("json_object"))
    assert not problem(Constraint("choice", '["a", "", "\\u00e4 \\"b\\"", "a/b"]'))
    assert not problem(Constraint("grammar", 'start: "a" rest\nrest: /[0-9]+/ | "b" rest'))
    assert not problem(Constraint("grammar", 'root ::= "a" rest\nrest ::= [0-9]+ | "b" rest'))
    assert not problem(Constraint("grammar", '%llguidance {"no_forcing": false}\nstart: "a"'))


def _properties(count: int) -> str:
    return json.dumps({"properties": {f"p{i}": {"type": "integer"} for i in range(count)}})


REFUSED: dict[str, tuple[ConstraintKind, str, str]] = {
    "not": ("json_schema", '{"not": {"type": "string"}}', "not"),
    "unique items": ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "somebody else's": ("json_schema", '{"$ref": "https://example.com/schema.json"}', "example.com"),
    "no schema": ("json_schema", '{"type": "strin"}', "strin"),
    "impossible": ("json_schema", '{"type": "integer", "minimum": 3, "maximum": 2}', ""),
    "no pattern": ("regex", "(a", ""),
    "back reference": ("regex", r"(a)\1", ""),
    "no grammar": ("grammar", "what is this?", ""),
    "unknown rule": ("grammar", "start: nobody", "nobody"),
    "too long": ("regex", "a" * MOST + "b", str(MOST)),
    "too many properties": ("json_schema", _properties(5000), ""),
    "too deep": ("json_schema", '{"items": ' * 300 + "{}" + "}" * 300, ""),
    "nested repetitions": ("regex", "(" * 200 + "a" + ")*" * 200, ""),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    kind, text, reason = REFUSED[what]
    said = problem(Constraint(kind, text))
    assert reason in said
    assert 10 < len(said) < 400
    assert "panic" not in said


def test_a_model_of_whole_words_cannot_be_held_to_anything() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    model = TextModel(View(Source("words", ""), 10, 2), Tokenizer(words, {}, frozenset()), None)
    body = CompletionRequest(model="words", prompt="a", guided_regex="a")
    with pytest.raises(BadRequest, match="guided_regex: the tokens of 'words' are words") as refused:
        constraint_of(body, model, lambda stage: None)
    assert refused.value.param == "guided_regex"
