"""Every refusal: status, the four keys, the field. After each of them the door serves on."""

import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.http_door import Door, Scripted

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
LIMITS = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def error_of(answer: Any) -> dict[str, Any]:
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert isinstance(answer["error"]["message"], str)
    assert answer["error"]["message"]
    error: dict[str, Any] = answer["error"]
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),  # this template refuses
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x" * 5000]}, "stop[0]"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 5e-324}, "repetition_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [2, 100_000]}, "stop_token_ids[1]"),
        ({"min_tokens": 1, "stop_token_ids": [2**31 - 1]}, "stop_token_ids[0]"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"tools": "x"}, "tools"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
        ),
        ({"tools": [LIMITS], "tool_choice": "required"}, "tools"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": [1]}}, "response_format.schema"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a"] * 5000}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "nonsense ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": ["regex"]}, "structured_outputs"),
        ({"guided_json": "{"}, "guided_json"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"400": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [1, 400]}, "allowed_token_ids[1]"),
        ({"bad_words": [""]}, "bad_words[0]"),
        ({"bad_words": "no"}, "bad_words"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"chat_template": ""}, "chat_template"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
    ],
)
async def test_chat_field(
    door: Door, serving: Scripted, chat_body: dict[str, Any], change: dict[str, Any], param: str | None
) -> None:
    status, answer, _ = await door.post(CHAT, chat_body | change)
    error = error_of(answer)
    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert serving.requests == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [399, 400]}, "prompt"),
        ({"prompt": [2**40]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 600, "n": 2}, "n"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"best_of": 1, "n": 2}, None),
        ({"max_tokens": -2}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_completion_field(
    door: Door, serving: Scripted, change: dict[str, Any], param: str | None
) -> None:
    status, answer, _ = await door.post(TEXT, {"model": "base", "prompt": "x"} | change)
    if param is None:
        assert status == 200
        return
    assert (status, error_of(answer)["param"]) == (400, param)
    assert serving.requests == []


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": []},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"logit_bias": {}, "bad_words": [], "allowed_token_ids": None, "structured_outputs": {}},
        {"structured_outputs": {"regex": None, "json_object": False}, "guided_json": None},
        {"modalities": ["text"]},
        {"best_of": 2, "n": 2},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "unheard_of": [1]},
        {"temperature": None, "stop": None, "seed": None, "n": None, "max_tokens": None, "stream": None},
        {"stream_options": None, "logprobs": None, "top_k": -1},
    ],
)
async def test_harmless(door: Door, chat_body: dict[str, Any], harmless: dict[str, Any]) -> None:
    assert (await door.post(CHAT, chat_body | harmless))[0] == 200


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"{", b"nul", b"[1]", b'"x"', b'{"model": "\xff"}', b'{"a":' + b"[" * 5000, b"\xef\xbb\xbf{}"),
        *(rb'{"model": "\ud800"}', b'{"model": 1e999}'),
    ],
)
async def test_not_json(door: Door, raw: bytes) -> None:
    for path in (CHAT, TEXT, "/tokenize", "/detokenize"):
        async with door.http.post(path, data=raw, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 400
            error_of(await answer.json())


UNSAID = ["text/plain", "application/x-www-form-urlencoded", ""]  # what curl and scripts send


@pytest.mark.parametrize("kind", UNSAID)
async def test_programs_need_not_say_that_it_is_json(
    door: Door, chat_body: dict[str, Any], kind: str
) -> None:
    headers = {"Content-Type": kind}
    async with door.http.post(CHAT, data=json.dumps(chat_body).encode(), headers=headers) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("page", [{"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize("kind", UNSAID)
async def test_pages_must(door: Door, chat_body: dict[str, Any], kind: str, page: dict[str, str]) -> None:
    headers = {"Content-Type": kind, **page}
    async with door.http.post(CHAT, data=json.dumps(chat_body).encode(), headers=headers) as answer:
        assert answer.status == 415
        assert "application/json" in error_of(await answer.json())["message"]


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/xml"])
async def test_what_is_something_else(door: Door, chat_body: dict[str, Any], kind: str) -> None:
    headers = {"Content-Type": kind}
    async with door.http.post(CHAT, data=json.dumps(chat_body).encode(), headers=headers) as answer:
        assert answer.status == 415
        assert "application/json" in error_of(await answer.json())["message"]


async def test_broken_compression(door: Door) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with door.http.post(CHAT, data=b"not gzip at all", headers=headers) as answer:
        assert answer.status == 400
        error_of(await answer.json())


async def test_body_of_ten_megabytes(door: Door, chat_body: dict[str, Any]) -> None:
    for data in (
        io.BytesIO(b"x" * (10 << 20)),
        chunks(b"x" * 65536, 160),
    ):  # with and without a length in front
        async with door.http.post(CHAT, data=data, headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 413
            assert error_of(await answer.json())["code"] == "request_too_large"
    assert (await door.post(CHAT, chat_body))[0] == 200


async def chunks(chunk: bytes, times: int) -> AsyncIterator[bytes]:
    for _ in range(times):
        yield chunk


async def test_routes_and_methods(door: Door) -> None:
    for method, path in (("GET", "/v1/nothing"), ("POST", "/"), ("POST", "/v1/moderations")):
        async with door.http.request(method, path) as answer:
            assert answer.status == (405 if path == "/" else 404)
            message = error_of(await answer.json())["message"]
            assert ("use GET" if path == "/" else CHAT) in message
    async with door.http.get(f"/v1/{'x' * 1000}") as answer:
        assert len(await answer.read()) < 1000
    for method, path, allow in (
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET,HEAD"),
        ("TRACE", CHAT, "POST"),
        ("PROPFIND", "/health", "GET,HEAD"),
    ):
        async with door.http.request(method, path) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, allow)
            assert error_of(await answer.json())["code"] == "method_not_allowed"
    text = await (await door.http.get("/metrics")).text()
    assert 'muxd_http_requests_total{method="other",route="unknown",status="405"} 1.0' in text
    assert "PROPFIND" not in text


async def test_too_long(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    for path, body, param in (
        (TEXT, {"model": "base", "prompt": "x " * 600}, "prompt"),
        (TEXT, {"model": "base", "prompt": [5] * 512}, "prompt"),
        (TEXT, {"model": "base", "prompt": [5] * 500, "max_tokens": 13}, "max_tokens"),
        (CHAT, chat_body | {"messages": [{"role": "user", "content": "x " * 5000}]}, "messages"),
        (CHAT, chat_body | {"max_completion_tokens": 512}, "max_completion_tokens"),
    ):
        status, answer, headers = await door.post(path, body)
        error = error_of(answer)
        assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", param)
        assert "512" in error["message"]
        assert headers["x-should-retry"] == "false"
    assert serving.requests == []
    await door.post(TEXT, {"model": "base", "prompt": [5] * 500, "max_tokens": 12})
    await door.post(TEXT, {"model": "base", "prompt": [5] * 500})
    await door.post(CHAT, chat_body)
    assert [r.max_tokens for r in serving.requests[:2]] == [12, 12]
    assert serving.requests[2].max_tokens == 512 - len(serving.requests[2].prompt)


async def test_token_that_the_embedding_lacks(door: Door, serving: Scripted) -> None:
    """A tokenizer may know special tokens beyond the model's embedding (Gemma 3's image token)."""
    image = serving.ids("<image>")
    assert len(image) == 1
    serving.by_name["base"].vocab_size = image[0]
    status, answer, _ = await door.post(TEXT, {"model": "base", "prompt": "<image>"})
    assert (status, error_of(answer)["param"]) == (400, "prompt")


async def test_a_stop_token_outside_the_vocabulary_is_refused_with_its_size(
    door: Door, serving: Scripted
) -> None:
    size = serving.by_name["base"].vocab_size
    body = {"model": "base", "prompt": "x", "min_tokens": 1, "stop_token_ids": [size]}
    status, answer, _ = await door.post(TEXT, body)
    assert (status, error_of(answer)["param"]) == (400, "stop_token_ids[0]")
    assert f"{size} ids 0 to {size - 1}" in answer["error"]["message"]
    assert serving.requests == []
    status, *_ = await door.post(TEXT, body | {"stop_token_ids": [size - 1]})
    assert status == 200


async def test_min_tokens_needs_a_token_that_does_not_end_the_answer(door: Door, serving: Scripted) -> None:
    size = serving.by_name["base"].vocab_size
    (eos,) = serving.tokenizer.eos
    others = [token for token in range(size) if token != eos]
    body = {"model": "base", "prompt": "x", "stop_token_ids": others}
    status, answer, _ = await door.post(TEXT, body | {"min_tokens": 1})
    assert (status, error_of(answer)["param"]) == (400, "min_tokens")
    assert serving.requests == []
    for fits in ({}, {"min_tokens": 1, "ignore_eos": True}, {"min_tokens": 1, "stop_token_ids": others[1:]}):
        status, *_ = await door.post(TEXT, body | fits)
        assert status == 200


async def test_chat_without_template(door: Door) -> None:
    status, answer, _ = await door.post(CHAT, {"model": "base", "messages": USER})
    assert (status, error_of(answer)["code"]) == (400, "no_chat_template")
    assert "[[model]]" in answer["error"]["message"]
    assert 'chat_template = "FILE"' in answer["error"]["message"]


async def test_model_states(door: Door, serving: Scripted, chat_body: dict[str, Any]) -> None:
    model = serving.by_name["org/chat-model"]
    model.state, model.detail = "failed", "model.safetensors: missing shard 2"
    status, answer, headers = await door.post(CHAT, chat_body)
    assert (status, error_of(answer)["code"]) == (503, "model_unavailable")
    model.retry_after = 20.0
    status, answer, back = await door.post(CHAT, chat_body)
    assert (status, error_of(answer)["code"], back["Retry-After"]) == (503, "model_not_ready", "20")
    model.retry_after = None
    assert "missing shard 2" in answer["error"]["message"]
    assert headers["x-should-retry"] == "false"
    model.state, model.tokenizer = "loading", None
    status, answer, headers = await door.post(CHAT, chat_body)
    assert (status, error_of(answer)["code"], headers["Retry-After"]) == (503, "model_not_ready", "2")
    model.state = "draining"
    status, answer, headers = await door.post(CHAT, chat_body)
    assert (status, error_of(answer)["code"]) == (503, "shutting_down")
    assert (await door.post(TEXT, {"model": "base", "prompt": "x"}))[0] == 200


async def test_a_byte_order_mark_before_a_body_is_skipped(door: Door, chat_body: dict[str, Any]) -> None:
    data = b"\xef\xbb\xbf" + json.dumps(chat_body | {"temprature": 1}).encode()
    async with door.http.post(CHAT, data=data, headers=JSON) as answer:
        assert (answer.status, answer.headers["x-muxd-ignored"]) == (200, "temprature")


async def test_a_body_of_many_gzip_members(door: Door, chat_body: dict[str, Any]) -> None:
    data, headers = json.dumps(chat_body).encode(), JSON | {"Content-Encoding": "gzip"}
    for members, status in ((63, 200), (64, 400), (4096, 400)):
        packed = gzip.compress(b"") * members + gzip.compress(data)
        async with door.http.post(CHAT, data=packed, headers=headers) as answer:
            assert (answer.status, members) == (status, members)
            if status == 400:
                assert "gzip members" in error_of(await answer.json())["message"]


async def test_a_tool_that_is_nested_as_deep_as_json_may_be(door: Door, chat_body: dict[str, Any]) -> None:
    deep = '{"a":' * 600 + "1" + "}" * 600
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}'
    whole = json.dumps(chat_body | {"tool_choice": "required"})
    data = f'{whole[:-1]}, "tools": [{tool}]}}'.encode()
    async with door.http.post(CHAT, data=data, headers=JSON) as answer:
        assert answer.status == 400
        assert error_of(await answer.json())["message"] == "the request body is nested too deeply"


async def test_a_body_that_only_names_a_model_is_short_and_plain(door: Door) -> None:
    long = json.dumps({"model": "base", "x": " " * (64 << 10)}).encode()
    for data, more, status in (
        (long, {}, 413),
        (gzip.compress(b'{"model": "base"}'), {"Content-Encoding": "gzip"}, 415),
        (b"\xef\xbb\xbf" + b'{"model": "base"}', {}, 200),
    ):
        async with door.http.post("/api/show", data=data, headers=JSON | more) as answer:
            assert answer.status == status
