"""The official client is the judge of both endpoints and of the errors."""

import asyncio
from typing import Any

import openai
import pytest
from support.http_door import Door, Scripted

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import ModelNotReady, QueueFull, WorkerLost

pytestmark = pytest.mark.anyio
CHAT: dict[str, Any] = {"model": "org/chat-model", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "hello world, naïve 🦊 café 日本語"


async def test_chat_whole(door: Door, serving: Scripted) -> None:
    serving.play = serving.say(TEXT)
    answer = await door.openai.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(serving.requests[0].prompt)
    assert answer.usage.completion_tokens == len(serving.ids(TEXT))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert serving.closed == []


@pytest.mark.parametrize("each", [1, 3, 1000])
async def test_chat_stream_joins_to_the_text(door: Door, serving: Scripted, each: int) -> None:
    serving.play = serving.say(TEXT, "length", each_wakeup=each)
    stream = await door.openai.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == TEXT
    assert "\ufffd" not in "".join(texts)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(serving.ids(TEXT))
    assert len({c.id for c in chunks}) == 1


async def test_several_choices_do_not_mix(door: Door, serving: Scripted) -> None:
    texts = ["one two", "hello there", "🦊🦊🦊"]
    serving.play = lambda request, stream: serving.say(texts[len(serving.requests)])(request, stream)
    stream = await door.openai.chat.completions.create(**CHAT, stream=True, n=3, seed=5)
    got = ["", "", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            got[choice.index] += choice.delta.content or ""
    assert got == texts
    assert [request.sampling.seed for request in serving.requests] == [5, 6, 7]
    assert len({request.id for request in serving.requests}) == 3


async def test_completions_whole_and_streamed(door: Door, serving: Scripted) -> None:
    serving.play = serving.say(TEXT)
    answer = await door.openai.completions.create(model="base", prompt="the quick", echo=True)
    assert answer.choices[0].text == "the quick" + TEXT
    stream = await door.openai.completions.create(model="base", prompt="the quick", stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == TEXT
    assert serving.requests[0].prompt == serving.ids("the quick")


async def test_four_forms_of_prompt(door: Door, serving: Scripted) -> None:
    ids = serving.ids("one two")
    for prompt, expected in (
        ("one two", [ids]),
        (["one two", "three"], [ids, serving.ids("three")]),
        (ids, [ids]),
        ([ids, ids[:1]], [ids, ids[:1]]),
    ):
        serving.requests.clear()
        answer = await door.openai.completions.create(model="base", prompt=prompt, n=2, echo=True)
        assert [r.prompt for r in serving.requests] == [p for p in expected for _ in range(2)]
        assert [choice.index for choice in answer.choices] == list(range(2 * len(expected)))
        assert answer.choices[0].text == "one twohello world"
        assert answer.usage.prompt_tokens == sum(len(p) for p in expected)


async def test_models(door: Door) -> None:
    listed = [model async for model in door.openai.models.list()]
    assert [model.id for model in listed] == ["org/chat-model", "base"]
    assert (await door.openai.models.retrieve("org/chat-model")).created == 1700000000
    with pytest.raises(openai.NotFoundError) as raised:
        await door.openai.models.retrieve("nobody/nothing")
    assert raised.value.code == "model_not_found"


async def test_unknown_model(door: Door) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await door.openai.chat.completions.create(**CHAT | {"model": "gpt-9"})
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert "org/chat-model" in raised.value.message


@pytest.mark.parametrize(
    ("error", "kind", "retry"),
    [
        (QueueFull("the queue of chat-model is full"), openai.RateLimitError, "1"),
        (ModelNotReady("chat-model is restarting"), openai.InternalServerError, "2"),
    ],
)
async def test_refused_by_the_engine(
    door: Door,
    serving: Scripted,
    error: QueueFull | ModelNotReady,
    kind: type[openai.APIStatusError],
    retry: str,
) -> None:
    def refuse(request: Request, stream: TokenStream) -> None:
        raise error

    serving.play = refuse
    with pytest.raises(kind) as raised:
        await door.openai.chat.completions.create(**CHAT, stream=True)
    assert raised.value.response.headers["retry-after"] == retry
    assert raised.value.code == error.code


async def test_one_full_queue_gives_back_the_other_choices(door: Door, serving: Scripted) -> None:
    def second_is_refused(request: Request, stream: TokenStream) -> None:
        if serving.requests:
            raise QueueFull("full")

    serving.play = second_is_refused
    with pytest.raises(openai.RateLimitError):
        await door.openai.chat.completions.create(**CHAT, n=3)
    assert serving.closed == [False]


async def test_lost_before_the_first_token_is_a_true_status(door: Door, serving: Scripted) -> None:
    serving.play = lambda request, stream: stream.fail(WorkerLost("the worker died"))
    with pytest.raises(openai.InternalServerError) as raised:
        await door.openai.chat.completions.create(**CHAT, stream=True)
    assert raised.value.code == "worker_lost"


async def test_lost_in_the_middle_is_an_error_event(door: Door, serving: Scripted) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        serving.hold("hello")(request, stream)
        stream.fail(WorkerLost("the worker died"))

    serving.play = play
    stream = await door.openai.chat.completions.create(**CHAT, stream=True)
    assert (await anext(stream)).choices[0].delta.role == "assistant"
    assert (await anext(stream)).choices[0].delta.content == "hello"
    with pytest.raises(openai.APIError, match="the worker died"):
        await anext(stream)
    assert serving.closed == []


async def test_failure_of_one_choice_closes_the_others(door: Door, serving: Scripted) -> None:
    def play(request: Request, stream: TokenStream) -> None:
        if serving.requests:
            stream.fail(WorkerLost("the worker died"))
        else:
            serving.hold()(request, stream)

    serving.play = play
    with pytest.raises(openai.InternalServerError):
        await door.openai.chat.completions.create(**CHAT, n=2)
    assert serving.closed == [False]


async def test_many_choices_let_others_in_between_and_a_refused_one_closes_all(
    door: Door, serving: Scripted
) -> None:
    """A thousand submitted, or closed, at a stretch would be a gap in every stream."""
    submitted: list[int] = []  # how many there were, whenever somebody else had the loop

    def play(request: Request, stream: TokenStream) -> None:
        asyncio.get_running_loop().call_soon(lambda: submitted.append(len(serving.requests)))
        if len(serving.requests) == 1000:
            raise QueueFull("enough")
        serving.hold()(request, stream)

    serving.play = play
    with pytest.raises(openai.RateLimitError, match="enough"):
        await door.openai.with_options(max_retries=0).completions.create(
            model="base", prompt=["x"] * 1024, max_tokens=2
        )
    assert len(set(submitted)) > 20
    assert serving.closed == [False] * 1000


@pytest.mark.parametrize("each", [1, 2, 100])
@pytest.mark.parametrize("stream", [False, True])
async def test_stop_string(door: Door, serving: Scripted, each: int, stream: bool) -> None:
    """The text ends before it, the engine is told, and the count does not depend on wake-ups."""
    serving.play = serving.say("one two three four five", "length", each_wakeup=each)
    answer = await door.openai.chat.completions.create(**CHAT, stop=["three", "zzz"], stream=stream)
    if stream:
        chunks = [chunk.choices[0] async for chunk in answer]
        text, finish = "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
        seen = 0
        while "three" not in serving.tokenizer.decode(serving.ids("one two three four five")[:seen]):
            seen += 1
        assert answer.usage.completion_tokens == seen
    assert (text, finish) == ("one two ", "stop")
    assert serving.closed in ([True], [])  # [] where the script had ended before the reader came
    if each == 1:
        assert serving.closed == [True]


async def test_half_a_stop_string_at_the_end_is_shown(door: Door, serving: Scripted) -> None:
    serving.play = serving.say("one two thr", "length")
    answer = await door.openai.chat.completions.create(**CHAT, stop="three")
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two thr", "length")


async def test_stop_strings_wait_for_min_tokens(door: Door, serving: Scripted) -> None:
    serving.play = serving.say("one one one one", "length")
    tokens = serving.ids("one one one one")
    answer = await door.openai.chat.completions.create(
        **CHAT, stop="one", extra_body={"min_tokens": len(tokens)}
    )
    assert answer.choices[0].message.content == "one one one "


async def test_logprobs_of_both_shapes(door: Door, serving: Scripted) -> None:
    serving.play = serving.say("é 🦊", logprobs=True)
    answer = await door.openai.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "é 🦊"
    assert [len(entry.top_logprobs) for entry in content] == [2] * len(content)
    assert content[0].logprob == -0.5
    stream = await door.openai.chat.completions.create(**CHAT, logprobs=True, stream=True)
    scored = [e async for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert b"".join(bytes(entry.bytes) for entry in scored).decode() == "é 🦊"
    serving.play = serving.say("hello world", logprobs=True)
    text = (await door.openai.completions.create(model="base", prompt="x", logprobs=1)).choices[0].logprobs
    assert "".join(text.tokens) == "hello world"
    assert text.text_offset == [0, *[len("".join(text.tokens[:i])) for i in range(1, len(text.tokens))]]
    assert len(text.token_logprobs) == len(text.top_logprobs) == len(text.tokens)
