"""What an answer says does not depend on how its text arrives, and each family's calls are read."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.text.dialects import DIALECTS, dialect_of, in_words
from muxd.text.sayings import Arguments, Call, Content, Thought
from muxd.text.speech import Manner, Speech
from muxd.text.thinking import THINKING, inside, thinking_of

Said = tuple[str, str, list[tuple[str, str]]]


def said(manner: Manner, pieces: list[str]) -> Said:
    """Reasoning, content and calls, as a client adds them up."""
    speech, thought, content = Speech(manner), "", ""
    calls: list[list[str]] = []
    for sayings in [*(speech.push(piece) for piece in pieces), speech.finish()]:
        for saying in sayings:
            match saying:
                case Thought():
                    assert not content
                    assert not calls
                    thought += saying.text
                case Content():
                    content += saying.text
                case Call():
                    assert saying.index == len(calls)
                    calls.append([saying.name, ""])
                case Arguments():
                    assert saying.index == len(calls) - 1
                    calls[-1][1] += saying.text
    assert speech.called == bool(calls)
    return thought, content, [(name, text) for name, text in calls]


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


words = st.sampled_from(
    ["", " ", "\n", "Hi.", "weather", "{", "}", "[", "1", '"', "\\", ",", ";", ":", "<", "ü"]
)
names = st.sampled_from(["weather", "unknown"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('a"\\{}<|ü ', max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=2),
    max_leaves=5,
)
objects = st.dictionaries(st.text("ab", min_size=1, max_size=3), values, max_size=3)


@st.composite
def call_texts(draw: st.DrawFn) -> str:
    """A call in any of the dialects, perhaps cut short."""
    name, arguments = draw(names), json.dumps(draw(objects), ensure_ascii=draw(st.booleans()))
    one = json.dumps({"name": name, "arguments": 0}).replace("0", arguments)
    text = draw(
        st.sampled_from(
            [
                one, f"[{one}, {one}]", f"```json\n{one}\n```", f"<|python_tag|>{one}; {one}",
                f"<tool_call>\n{one}\n</tool_call>", f"[TOOL_CALLS][{one}]",
                f"[TOOL_CALLS]{name}[CALL_ID]abc[ARGS]{arguments}",
                f"<|tool_call>call:{name}{arguments}<tool_call|>",
                f'<start_function_call>call:{name}{{a:<escape>x"<escape>,b:[1,no]}}<end_function_call>',
            ]
        )
    )  # fmt: skip
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


markers = st.sampled_from([marker for one in DIALECTS.values() for marker in one.markers])
thinking_markers = st.sampled_from([text for one in THINKING.values() for text in (one.begin, one.end)])
answers = st.lists(words | call_texts() | markers | thinking_markers, max_size=8).map("".join)
manners = st.builds(
    Manner,
    thinking=st.sampled_from(["", *THINKING]),
    inside=st.booleans(),
    dialect=st.sampled_from(["", *DIALECTS]),
    tools=st.just(("weather",)),
    parallel=st.booleans(),
)


@given(manner=manners, text=answers, cuts=st.lists(st.integers(0, 2000), max_size=12))
def test_any_cut_says_the_same(manner: Manner, text: str, cuts: list[int]) -> None:
    whole = said(manner, [text])
    assert said(manner, pieces_of(text, cuts)) == whole
    assert said(manner, list(text)) == whole


@given(dialect=st.sampled_from(sorted(DIALECTS)), text=st.text("ab {}\n", max_size=20))
def test_what_calls_nothing_is_all_content(dialect: str, text: str) -> None:
    assert said(Manner(dialect=dialect, tools=("weather",)), [text]) == ("", text, [])


@given(arguments=objects, early=st.booleans())
def test_arguments_are_what_the_model_wrote(arguments: dict[str, Any], early: bool) -> None:
    text = json.dumps(arguments)
    fields = [f'"arguments": {text}', '"name": "weather"']
    one = "{" + ", ".join(fields if early else fields[::-1]) + "}"
    for dialect, answer in (
        ("hermes", f"<tool_call>{one}</tool_call>"),
        ("json", one),
        ("llama3", f"[{one}]"),
    ):
        assert said(Manner(dialect=dialect, tools=("weather",)), [answer]) == ("", "", [("weather", text)])


CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
ROME = ("weather", '{"city": "Rome"}')


@pytest.mark.parametrize(
    ("dialect", "text", "content", "calls"),
    [
        ("hermes", f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see.", [ROME]),
        ("hermes", f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n", "", [ROME, ROME]),
        ("hermes", f"<tool_call>\n{CALL}\n{CALL}</tool_call> done", "done", [ROME, ROME]),
        ("hermes", "<tool_call>not a call</tool_call>", "<tool_call>not a call</tool_call>", []),
        ("hermes", CALL, "", [ROME]),
        ("hermes", f"```json\n{CALL}\n```\nDone.", "Done.", [ROME]),
        ("hermes", f"Well: {CALL}", f"Well: {CALL}", []),
        ("hermes", CALL.replace("weather", "other"), CALL.replace("weather", "other"), []),
        ("hermes", '```json\n{"city": 1}\n```', '```json\n{"city": 1}\n```', []),
        ("hermes", f'{{"a": 1}}\n<tool_call>{CALL}</tool_call>', '{"a": 1}', [ROME]),
        ("llama3", '{"name": "weather", "parameters": {"city": "Rome"}}', "", [ROME]),
        ("llama3", f"<|python_tag|>{CALL};{CALL}", "", [ROME, ROME]),
        ("llama3", '{"type": "function", "function": {"name": "weather", "parameters": {}}}', "",
         [("weather", "{}")]),
        ("llama3", '{"name": "Anna", "age": 3}', '{"name": "Anna", "age": 3}', []),
        ("json", f"```json\n{CALL}\n```", "", [ROME]),
        ("json", f"[{CALL}, {CALL}]", "", [ROME, ROME]),
        ("json", "[1] is a footnote", "[1] is a footnote", []),
        ("json", '{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}', "", [ROME]),
        ("json", '{"name": "weather"}', "", [("weather", "{}")]),
        ("mistral", f"[TOOL_CALLS][{CALL}]", "", [ROME]),
        ("mistral", 'Well. [TOOL_CALLS]weather[ARGS]{"city": "Rome"}', "Well.", [ROME]),
        ("mistral", '[TOOL_CALLS]a{"b": "}"}[TOOL_CALLS]c{}', "", [("a", '{"b": "}"}'), ("c", "{}")]),
        ("gemma", '<|tool_call>call:f{a:<|"|>x "y"\n<|"|>,b:[1,-2.5,true],c:{d:null}}<tool_call|>', "",
         [("f", '{"a":"x \\"y\\"\\n","b":[1,-2.5,true],"c":{"d":null}}')]),
        ("functiongemma", "<start_function_call>call:f{a:<escape>x<escape>}<end_function_call>", "",
         [("f", '{"a":"x"}')]),
    ],
)  # fmt: skip
def test_a_dialect(dialect: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert said(Manner(dialect=dialect, tools=("weather",)), [text]) == ("", content, calls)


@pytest.mark.parametrize(
    ("begun", "text", "thought", "content"),
    [
        (False, "<think>\nso\n</think>\n\nHi", "so", "Hi"),
        (True, "so\nit is</think>Hi </think>", "so\nit is", "Hi </think>"),
        (False, "Hi <think>x</think>", "", "Hi <think>x</think>"),
        (True, "never ends", "never ends", ""),
        (False, "  <thin", "", "  <thin"),
        (False, "<think></think>\nHi", "", "Hi"),
    ],
)
def test_reasoning(begun: bool, text: str, thought: str, content: str) -> None:
    assert said(Manner(thinking="think", inside=begun), [text]) == (thought, content, [])


def test_one_call_where_several_are_not_wanted() -> None:
    manner = Manner(dialect="json", tools=("weather",), parallel=False)
    assert said(manner, [f"[{CALL}, {CALL}]"]) == ("", "", [ROME])


def test_reasoning_then_a_call() -> None:
    manner = Manner(thinking="think", dialect="hermes", tools=("weather",))
    text = f"<think>\nI should look.\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>"
    assert said(manner, [text]) == ("I should look.", "", [ROME])


def test_a_calls_id_is_what_its_template_takes() -> None:
    (call, *_) = Speech(Manner(dialect="mistral")).push("[TOOL_CALLS]f{")
    assert isinstance(call, Call)
    assert len(call.id) == 9
    assert call.id.isalnum()


@pytest.mark.parametrize(
    ("template", "dialect", "thinking"),
    [
        ("<tool_call>\n{...}</tool_call> </think>", "hermes", "think"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS] [THINK][/THINK]", "mistral", "mistral"),
        ("<|tool_call>call: <|channel>thought <channel|>", "gemma", "gemma"),
        ("<start_function_call>", "functiongemma", ""),
        ("<|start_header_id|>", "llama3", ""),
        ("{{ messages }}", "json", ""),
    ],
)
def test_a_template_tells_its_dialect(template: str, dialect: str, thinking: str) -> None:
    assert (dialect_of(template), thinking_of(template)) == (dialect, thinking)


def test_a_prompt_that_has_begun_to_reason() -> None:
    assert inside("think", "<|Assistant|><think>\n")
    assert not inside("think", "<think>\n\n</think>\n\n")
    assert not inside("", "<think>")


def test_tools_in_words() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny"}]},
    ]
    system, user, called, result = in_words(turns, [tool])
    assert system["role"] == "system"
    assert '{"name":"weather","parameters":{}}' in system["content"]
    assert user == turns[0]
    assert called == {"role": "assistant", "content": '{"name":"weather","arguments":{"city":"Rome"}}'}
    assert result == {"role": "user", "content": "Result of weather:\nsunny"}
    (system, *_) = in_words([{"role": "system", "content": "Be brief."}, *turns], [tool])
    assert system["content"].startswith("Be brief.\n\nYou may call")
