"""Qwen2.5-Coder-0.5B-Instruct beside a demo model: its tokens are transformers', and so are its prompts with
tools; it calls a tool over each API, where it may and where it must, streamed and not."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
from jsonschema import Draft202012Validator
from support import qwen_coder
from support.completing import complete
from support.live import LiveDaemon, demo_config, live
from support.reference import PROMPTS, forget, greedy

from muxd.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.demo, pytest.mark.slow, pytest.mark.timeout(1800)]
MODEL = "coder"
TOKENS = 16
ASKED: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "The name of the city"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {
    "name": "get_weather", "description": "Get the current weather of a city", "parameters": PARAMETERS,
}  # fmt: skip
TOOL = {"type": "function", "function": FUNCTION}
RIVER = {"type": "function", "function": {"name": "river", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def folder() -> Path:
    return qwen_coder.folder()


@pytest.fixture(scope="module", params=["native", "torch"])
def daemon(
    folder: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveDaemon]:
    coder = (
        f'[[model]]\nname = "{MODEL}"\npath = "{folder}"\ndtype = "float32"\ncpu_step = "{request.param}"\n'
    )
    config = demo_config("smol", dtype="float32") + coder + "sampling = { temperature = 0.0 }\n"
    with live(config, tmp_path_factory.mktemp("coder")) as daemon:
        yield daemon


async def together(daemon: LiveDaemon, prompts: list[list[int]]) -> list[list[int]]:
    """While the other model answers, too."""
    timeout = aiohttp.ClientTimeout(900)
    async with aiohttp.ClientSession(daemon.url, timeout=timeout) as session:
        beside = asyncio.create_task(complete(session, "smol", "Once upon a time", TOKENS))
        found = await asyncio.gather(*(complete(session, MODEL, prompt, TOKENS) for prompt in prompts))
        await beside
        return list(found)


def test_greedy_tokens_are_those_of_transformers(daemon: LiveDaemon, folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    answers = asyncio.run(together(daemon, prompts))
    wanted = [greedy(folder, *one) for one in zip(prompts, answers, strict=True)]
    forget()  # two and a half gigabytes
    assert answers == wanted


def post(daemon: LiveDaemon, path: str, body: Any) -> Any:
    answer = httpx.post(f"{daemon.url}{path}", json=body, timeout=900)
    assert answer.status_code == 200, answer.text
    return answer.json()


only_native = pytest.mark.parametrize("daemon", ["native"], indirect=True)


@only_native
@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, RIVER]])
def test_prompts_are_those_of_transformers(daemon: LiveDaemon, folder: Path, tools: Any) -> None:
    from transformers import AutoTokenizer

    judge = AutoTokenizer.from_pretrained(folder)
    called = {"name": "get_weather", "arguments": {"city": "Rome"}}
    ours = {"id": "call_1", "type": "function", "function": called | {"arguments": '{"city": "Rome"}'}}
    theirs = {"type": "function", "function": called}
    for turns, known in (
        (ASKED, ASKED),
        (
            [*ASKED, {"role": "assistant", "content": None, "tool_calls": [ours]},
             {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}],
            [*ASKED, {"role": "assistant", "content": "", "tool_calls": [theirs]},
             {"role": "tool", "content": "sunny"}],
        ),
    ):  # fmt: skip
        body = {"model": MODEL, "messages": turns} | ({"tools": tools} if tools else {})
        ids = post(daemon, "/tokenize", body)["tokens"]
        wanted = judge.apply_chat_template(known, tools=tools, tokenize=False, add_generation_prompt=True)
        assert judge.decode(ids, skip_special_tokens=False) == wanted
        assert ids == judge(wanted, add_special_tokens=False).input_ids


# ---- a call, over each API --------------------------------------------------------------------------


def events(daemon: LiveDaemon, path: str, body: Any) -> list[Any]:
    found = []
    with httpx.stream("POST", f"{daemon.url}{path}", json=body | {"stream": True}, timeout=900) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                found.append(json.loads(line.removeprefix("data: ")))
    return found


Called = list[tuple[str, str]]  # names, and arguments as JSON


def by_chat(daemon: LiveDaemon, must: bool, stream: bool) -> Called:
    choice = "required" if must else "auto"
    body = {
        "model": MODEL,
        "messages": ASKED,
        "tools": [TOOL, RIVER],
        "tool_choice": choice,
        "max_tokens": 200,
    }
    if not stream:
        (said,) = post(daemon, "/v1/chat/completions", body)["choices"]
        assert said["finish_reason"] == "tool_calls"
        calls = [call["function"] for call in said["message"]["tool_calls"]]
        return [(call["name"], call["arguments"]) for call in calls]
    made: list[list[str]] = []
    for chunk in events(daemon, "/v1/chat/completions", body):
        for delta in chunk["choices"][0]["delta"].get("tool_calls") or ():
            if delta["index"] == len(made):
                made.append([delta["function"]["name"], ""])
            made[delta["index"]][1] += delta["function"].get("arguments", "")
    return [(name, text) for name, text in made]


def by_responses(daemon: LiveDaemon, must: bool, stream: bool) -> Called:
    flat = [{"type": "function", **tool["function"]} for tool in (TOOL, RIVER)]  # type: ignore[dict-item]
    choice = "required" if must else "auto"
    body = {"model": MODEL, "input": ASKED, "tools": flat, "tool_choice": choice, "max_output_tokens": 200}
    if not stream:
        output = post(daemon, "/v1/responses", body)["output"]
    else:
        told = events(daemon, "/v1/responses", body)
        output = [event["item"] for event in told if event["type"] == "response.output_item.done"]
        deltas = [
            event["delta"] for event in told if event["type"] == "response.function_call_arguments.delta"
        ]
        assert "".join(deltas) == "".join(item["arguments"] for item in output)
    assert {item["type"] for item in output} == {"function_call"}
    return [(item["name"], item["arguments"]) for item in output]


def by_messages(daemon: LiveDaemon, must: bool, stream: bool) -> Called:
    tools = [
        {"name": one["function"]["name"], "input_schema": one["function"]["parameters"],  # type: ignore[index]
         "description": one["function"].get("description", "")}  # type: ignore[attr-defined]
        for one in (TOOL, RIVER)
    ]  # fmt: skip
    choice = {"type": "any" if must else "auto"}
    body = {"model": MODEL, "messages": ASKED, "tools": tools, "tool_choice": choice, "max_tokens": 200}
    if not stream:
        answer = post(daemon, "/v1/messages", body)
        assert answer["stop_reason"] == "tool_use"
        return [(block["name"], json.dumps(block["input"])) for block in answer["content"]]
    made: list[list[str]] = []
    for event in events(daemon, "/v1/messages", body):
        if event["type"] == "content_block_start":
            assert event["content_block"]["type"] == "tool_use"
            made.append([event["content_block"]["name"], ""])
        elif event["type"] == "content_block_delta":
            made[-1][1] += event["delta"]["partial_json"]
    return [(name, text) for name, text in made]


@only_native
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("must", [False, True])
@pytest.mark.parametrize("ask", [by_chat, by_responses, by_messages])
def test_a_call(daemon: LiveDaemon, ask: Any, must: bool, stream: bool) -> None:
    calls = ask(daemon, must, stream)
    name, arguments = calls[0]
    assert name == "get_weather"
    given = json.loads(arguments)
    Draft202012Validator(PARAMETERS).validate(given)
    assert given["city"] == "Rome"
