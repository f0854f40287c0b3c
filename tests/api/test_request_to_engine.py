"""What the engine gets for what the client asked, value by value."""

import json
from typing import Any

import pytest
from support.http_door import Door, Scripted

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream

pytestmark = pytest.mark.anyio
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


async def asked(door: Door, serving: Scripted, path: str, body: dict[str, Any]) -> Request:
    serving.requests.clear()
    status, answer, _ = await door.post(path, body)
    assert status == 200, answer
    return serving.requests[0]


async def test_openai_defaults(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    request = await asked(door, serving, CHAT, chat_body)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.0, 0.0)
    assert (sampling.repetition_penalty, sampling.logprobs, sampling.min_tokens) == (1.0, -1, 0)
    assert sampling.banned_first == ()
    assert request.eos == serving.tokenizer.eos
    assert request.model == "org/chat-model"
    assert request.prompt == serving.ids("[user] hi\n[assistant]")


async def test_the_models_defaults_come_before_openais_and_the_clients_before_both(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": None, "repetition_penalty": 1.1}
    serving.by_name["org/chat-model"].default_sampling = defaults
    sampling = (await asked(door, serving, CHAT, chat_body)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.9, 20, 0.0)
    assert sampling.repetition_penalty == 1.1
    body = chat_body | {"temperature": 0, "top_p": 0.5, "top_k": -1, "min_p": 0.1, "repetition_penalty": 1}
    sampling = (await asked(door, serving, CHAT, body)).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 0, 0.1)
    assert sampling.repetition_penalty == 1.0


async def test_seeds(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    drawn = {(await asked(door, serving, CHAT, chat_body)).sampling.seed for _ in range(4)}
    assert len(drawn) == 4
    for seed in (0, 7, 2**63 - 1, -2):
        got = (await asked(door, serving, CHAT, chat_body | {"seed": seed})).sampling.seed
        assert got == seed % 2**63
    await asked(door, serving, CHAT, chat_body | {"seed": 2**63 - 1, "n": 2})
    assert [r.sampling.seed for r in serving.requests] == [2**63 - 1, 0]


async def test_seed_minus_one_is_no_seed(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    """As vLLM and llama.cpp have it: front ends send it for another answer each time."""
    drawn = {(await asked(door, serving, CHAT, chat_body | {"seed": -1})).sampling.seed for _ in range(4)}
    assert len(drawn) == 4


async def test_a_temperature_that_float32_cannot_divide_by_is_greedy(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    for tiny in (1e-46, 5e-324, 1e-39):
        body = chat_body | {"temperature": tiny, "min_p": 0.5}
        assert (await asked(door, serving, CHAT, body)).sampling.greedy
    body = chat_body | {"temperature": 1e-37}
    assert not (await asked(door, serving, CHAT, body)).sampling.greedy


async def test_sixty_four_stop_strings_are_taken(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    await asked(door, serving, CHAT, chat_body | {"stop": [f"{i}:" for i in range(64)]})


async def test_endings(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    eos = serving.tokenizer.eos
    request = await asked(door, serving, CHAT, chat_body | {"stop_token_ids": [7, 9]})
    assert request.eos == eos | {7, 9}
    request = await asked(door, serving, CHAT, chat_body | {"ignore_eos": True, "stop_token_ids": [7]})
    assert request.eos == {7}
    request = await asked(door, serving, CHAT, chat_body | {"min_tokens": 5, "stop_token_ids": [7]})
    assert (request.sampling.min_tokens, request.sampling.banned_first) == (5, tuple(sorted(eos | {7})))


async def test_token_limits(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    both = chat_body | {"max_tokens": 5, "max_completion_tokens": 9}
    assert (await asked(door, serving, CHAT, both)).max_tokens == 9
    assert (await asked(door, serving, CHAT, chat_body | {"max_tokens": 5})).max_tokens == 5
    assert (await asked(door, serving, TEXT, {"model": "base", "prompt": "x"})).max_tokens == 16


async def test_penalties_and_logprobs(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    body = chat_body | {"presence_penalty": 0.5, "frequency_penalty": -1, "logprobs": True, "top_logprobs": 3}
    sampling = (await asked(door, serving, CHAT, body)).sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logprobs) == (0.5, -1.0, 3)
    assert (await asked(door, serving, CHAT, chat_body | {"logprobs": True})).sampling.logprobs == 0
    body = {"model": "base", "prompt": "x", "logprobs": 0}
    assert (await asked(door, serving, TEXT, body)).sampling.logprobs == 0


async def test_conversation(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    body = chat_body | {"messages": messages, "chat_template_kwargs": {"shout": True}}
    request = await asked(door, serving, CHAT, body)
    assert request.prompt == serving.ids("[system] be kind\n[user] a\nb\nLOUD [assistant]")
    request = await asked(door, serving, CHAT, chat_body | {"add_generation_prompt": False})
    assert request.prompt == serving.ids("[user] hi\n")


async def test_the_ending_token_is_not_text(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    """Should the engine hand over the token that ended the sequence, it stays out of the text."""
    word = serving.ids("hello world")

    def play(request: Request, stream: TokenStream) -> None:
        for token in word:
            stream.put(token)
        stream.end("stop")

    serving.play = play
    body = chat_body | {"stop_token_ids": [word[-1]]}
    _, answer, _ = await door.post(CHAT, body)
    assert answer["choices"][0]["message"]["content"] == serving.tokenizer.decode(word[:-1])


async def test_the_engine_knows_both_ids_the_client_was_told(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    """`muxctl why` takes either."""
    body = chat_body | {"n": 2}
    _, answer, headers = await door.post(CHAT, body, **{"x-request-id": "from/client?7"})
    assert [request.id for request in serving.requests] == [f"{answer['id']}-0", f"{answer['id']}-1"]
    assert {request.http_id for request in serving.requests} == {"from/client?7"}
    _, _, headers = await door.post(TEXT, {"model": "base", "prompt": "x"})
    assert serving.requests[-1].http_id == headers["x-request-id"] != ""


async def test_prompts_and_chat_templates_go_to_a_text_process(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    serving.by_name["base"].max_context = 100_000
    await door.post(TEXT, {"model": "base", "prompt": "the quick"})
    assert [model for model, _ in serving.texts] == ["base"]
    serving.texts.clear()
    long = {"model": "base", "prompt": "the quick " * 1000}
    assert (await door.post(TEXT, long))[0] == 200
    assert serving.texts == [("base", len(json.dumps(long)))]
    assert (await door.post(CHAT, chat_body))[0] == 200
    assert serving.texts[1][0] == chat_body["model"]


async def test_a_very_long_body_is_decoded_there_too_and_finds_its_model(
    door: Door, serving: Scripted
) -> None:
    serving.by_name["base"].max_context = 100_000
    prompt = "quick brown " * 10_000
    status, answer, _ = await door.post(TEXT, {"prompt": prompt, "model": "base", "echo": True})
    assert status == 200
    assert answer["choices"][0]["text"].startswith(prompt)
    assert serving.texts[0][0] == ("base")
    status, answer, _ = await door.post(TEXT, {"prompt": prompt, "model": "nobody's"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


HELD = [
    ({"response_format": {"type": "json_object"}}, "json_object", ""),
    (
        {"response_format": {"type": "json_object", "schema": {"type": "null"}}},
        "json_schema",
        '{"type":"null"}',
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1]}}}},
        "json_schema",
        '{"enum":[1]}',
    ),
    ({"structured_outputs": {"json": '{"enum": ["\u00e9"]}'}}, "json_schema", '{"enum":["é"]}'),
    ({"structured_outputs": {"regex": "a/b"}}, "regex", "a/b"),
    ({"structured_outputs": {"json_object": True, "disable_any_whitespace": True}}, "json_object", ""),
    ({"guided_choice": ["a", "b"]}, "choice", '["a","b"]'),
    ({"guided_regex": "[ab]"}, "regex", "[ab]"),
    ({"guided_json": {"type": "null"}}, "json_schema", '{"type":"null"}'),
    ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"'),
]


@pytest.mark.parametrize(("change", "kind", "text"), HELD)
async def test_what_an_answer_is_held_to(
    door: Door, serving: Scripted, chat_body: dict[str, Any], change: dict[str, Any], kind: str, text: str
) -> None:
    """Through the processes for long texts, however short the body: it takes long to look at."""
    ends = tuple(sorted(serving.tokenizer.eos))
    for path, body in ((CHAT, chat_body), (TEXT, {"model": "base", "prompt": "x"})):
        serving.texts.clear()
        constraint = (await asked(door, serving, path, body | change)).sampling.constraint
        assert constraint is not None
        assert (constraint.kind, constraint.text, constraint.ends) == (kind, text, ends)
        assert len(serving.texts) == 1
    body = chat_body | change | {"ignore_eos": True, "stop_token_ids": [7]}
    constraint = (await asked(door, serving, CHAT, body)).sampling.constraint
    assert constraint is not None
    assert constraint.ends == (7,)


async def test_tokens_that_are_wanted_or_not(
    door: Door, serving: Scripted, chat_body: dict[str, Any]
) -> None:
    body = chat_body | {
        "logit_bias": {"9": -100, "007": 2.5}, "allowed_token_ids": [9, 3, 9],
        "bad_words": ["hello", " world"],
    }  # fmt: skip
    sampling = (await asked(door, serving, CHAT, body)).sampling
    assert sampling.bias == ((7, 2.5), (9, -100.0))
    assert sampling.allowed == (3, 9)
    assert sampling.reads_back
    wanted = {tuple(serving.ids(text)) for text in ("hello", " hello", " world")}
    assert set(sampling.bad_words) == wanted
    plain = (await asked(door, serving, CHAT, chat_body | {"response_format": {"type": "text"}})).sampling
    assert not plain.bounded
