"""Answers held to a form, over HTTP: every one fits it, streamed or not, in batches with answers that nothing
holds and that stay what they are, and whatever is taken from them on the way."""

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from support.forms import PATTERNS, schemas
from support.live import LiveDaemon, demo_config, demo_folder, live
from support.tiny import tiny_served
from support.where import EVERYWHERE, Where, on, place

FREE: dict[str, Any] = {"prompt": "Tell me", "temperature": 0, "max_tokens": 60, "ignore_eos": True}
MOST = 400
FORMS = min(200, int(os.environ.get("MUXD_FUZZ", "30")))  # schemas for each demo model


def blanks(url: str) -> dict[str, int]:
    """Of which random models write many."""
    asked = httpx.post(f"{url}/tokenize", json={"model": "a", "prompt": "\n\t\r "}, timeout=60).json()
    return {str(token): -100 for token in asked["tokens"]}


async def ask(
    session: aiohttp.ClientSession, body: dict[str, Any], path: str = "/v1/completions"
) -> tuple[str, str]:
    """Text and finish."""
    async with session.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        if not body.get("stream"):
            choice = (await answer.json())["choices"][0]
            return choice.get("text") or choice.get("message", {}).get("content") or "", choice[
                "finish_reason"
            ]
        text, finish = "", ""
        async for line in answer.content:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    finish = choice["finish_reason"] or finish
        return text, finish


async def all_of(
    url: str, bodies: list[dict[str, Any]], path: str = "/v1/completions"
) -> list[tuple[str, str]]:
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(280)) as session:
        return await asyncio.gather(*(ask(session, body, path) for body in bodies))


def fits(schema: dict[str, Any], answer: tuple[str, str]) -> None:
    assert answer[1] == "stop", answer
    Draft202012Validator(schema).validate(json.loads(answer[0]))


def asked_for(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


@pytest.fixture(scope="module")
def daemon(
    request: pytest.FixtureRequest, where: Where, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveDaemon]:
    """Both phases in one process, or each in its own."""
    folder = tmp_path_factory.mktemp("held")
    path = tiny_served(folder / "a")
    text = f'[pool]\nbytes = "32M"\n[scheduler]\nsplit_phases = "{request.param}"\n'
    text += f'[[model]]\nname = "a"\npath = "{path}"\ndtype = "float32"\n'
    with where.live(text, folder) as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("where", "daemon"),
    # On GPUs, whose SMs can be divided, each phase has a process of its own.
    [place(name, split, smoke=split == "yes") for name in EVERYWHERE for split in ("no", "yes")],
    indirect=True,
)
class TestRandomModels:
    @pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
    def test_schemas_beside_answers_that_nothing_holds(self, daemon: LiveDaemon, count: int) -> None:
        bias, some = blanks(daemon.url), schemas(count, seed=count)
        free = [{"model": "a", **FREE, "prompt": f"{i}"} for i in range(4)]
        wanted = asyncio.run(all_of(daemon.url, free))
        held = [
            {
                "model": "a", "prompt": f"{i} as JSON:", "max_tokens": MOST, "temperature": i % 3 / 2,
                "seed": i, "logit_bias": bias, "response_format": asked_for(schema), "stream": i % 2 == 0,
            }
            for i, schema in enumerate(some)
        ]  # fmt: skip
        found = asyncio.run(all_of(daemon.url, [*free, *held]))
        assert found[:4] == wanted
        for schema, answer in zip(some, found[4:], strict=True):
            fits(schema, answer)

    def test_patterns_choices_and_a_grammar(self, daemon: LiveDaemon) -> None:
        plain = {"model": "a", "prompt": "x", "max_tokens": MOST, "seed": 4}
        grammar = 'start: sum\nsum: NUMBER | sum "+" NUMBER\nNUMBER: /[1-9][0-9]?/'
        forms: list[dict[str, Any]] = [{"structured_outputs": {"regex": one}} for one in PATTERNS]
        forms += [{"guided_choice": ["red", "green", "ü\"'\\"]}, {"structured_outputs": {"grammar": grammar}}]
        forms += [{"response_format": {"type": "json_object", "schema": {"enum": ["x", 12]}}}]
        found = asyncio.run(all_of(daemon.url, [plain | form | {"stream": True} for form in forms]))
        for pattern, (text, finish) in zip(PATTERNS, found, strict=False):
            python = pattern.replace(r"\p{L}", r"[^\W\d_]").replace("[[:alpha:]]", "[a-zA-Z]")
            assert re.fullmatch(python, text), (pattern, text)
            assert finish == "stop"
        choice, total, enum = found[len(PATTERNS) :]
        assert choice[0] in ("red", "green", "ü\"'\\")
        assert re.fullmatch(r"[1-9]\d?(\+[1-9]\d?)*", total[0])
        assert json.loads(enum[0]) in ("x", 12)

    def test_a_hostile_form_is_refused_and_harms_nobody(self, daemon: LiveDaemon) -> None:
        wanted = asyncio.run(all_of(daemon.url, [{"model": "a", **FREE}]))
        before = daemon.workers()
        forms: list[dict[str, Any]] = [
            {"structured_outputs": {"regex": "(.{1,500}){1,500}(.{1,500}){1,500}"}},
            {"response_format": asked_for({"properties": {f"p{i}": {} for i in range(5000)}})},
            {"structured_outputs": {"regex": "(" * 500 + "a" + ")*" * 500}},
            {"structured_outputs": {"grammar": "start: " + "start " * 1000}},
            {"allowed_token_ids": [70], "bad_words": [chr(0x21 + 70 - 3)], "temperature": 0},
        ]

        async def scene() -> list[Any]:
            beside = asyncio.create_task(all_of(daemon.url, [{"model": "a", **FREE}]))
            async with aiohttp.ClientSession(daemon.url) as session:
                for form in forms:
                    body = {"model": "a", "prompt": "x", "max_tokens": 20} | form
                    async with session.post("/v1/completions", json=body) as answer:
                        said = await answer.json()
                        if answer.status == 200:
                            continue  # it was none of what is too much for so few tokens
                        assert answer.status == 400
                        assert said["error"]["param"] or said["error"]["code"] == "constraint_failed"
            return await beside

        assert asyncio.run(scene()) == wanted
        assert daemon.workers() == before


@on("cpu", "stand-in")
@pytest.mark.parametrize(("pool", "times"), [("256K", 25), pytest.param("512K", 50, marks=pytest.mark.slow)])
def test_an_answer_that_is_computed_again_keeps_its_form(
    where: Where, tmp_path: Path, pool: str, times: int
) -> None:
    """In a pool that holds a few of them at a time, they are the ones they are alone."""
    form = f"([a-z]{{3}} [0-9]{{2}},){{{times}}}"
    folder = tiny_served(tmp_path / "a")
    text = (
        f'[pool]\nbytes = "{pool}"\n[[model]]\nname = "a"\npath = "{folder}"\ndtype = "float32"\n'
        "max_queue = 256\nprefix_cache = false\n"
    )
    bodies: list[dict[str, Any]] = [
        {
            "model": "a", "prompt": f"{i}", "seed": i, "max_tokens": 380, "stream": i % 2 == 0,
            "structured_outputs": {"regex": form},
        }
        for i in range(8)
    ]  # fmt: skip
    with where.live(text, tmp_path) as daemon:
        alone = [asyncio.run(all_of(daemon.url, [body]))[0] for body in bodies]
        together = asyncio.run(all_of(daemon.url, bodies))
        families = text_string_to_metric_families(httpx.get(f"{daemon.url}/metrics", timeout=60).text)
        preempted = sum(
            sample.value for family in families for sample in family.samples
            if sample.name == "muxd_preemptions_total"
        )  # fmt: skip
    assert together == alone
    assert all(re.fullmatch(form, answer) for answer, _ in alone)
    assert preempted


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_demo_models(name: str, tmp_path: Path) -> None:
    """Real vocabularies, one through its chat template, at the temperature that a client sends by default;
    beside answers that nothing holds, which are what they are alone."""
    if not (demo_folder(name) / "config.json").is_file():
        pytest.skip(f"{demo_folder(name)} is not there: run `make demo`")
    path = "/v1/chat/completions" if name == "smol" else "/v1/completions"

    def body(seed: int, said: str, **form: Any) -> dict[str, Any]:
        asked = {"messages": [{"role": "user", "content": said}]} if name == "smol" else {"prompt": said}
        how = {"max_tokens": MOST, "temperature": seed % 2, "seed": seed, "stream": seed % 3 == 0}
        return {"model": name, **asked, **how, **form}

    some = schemas(FORMS, seed=7)
    bodies = [body(i, f"Number {i} as JSON:", response_format=asked_for(one)) for i, one in enumerate(some)]
    bodies += [body(i, "Anything.", guided_regex=one) for i, one in enumerate(PATTERNS)]
    free = [body(0, f"Tell me of number {i}.", max_tokens=40, ignore_eos=True) for i in range(4)]
    with live(demo_config(name, dtype="float32"), tmp_path) as daemon:
        wanted = [asyncio.run(all_of(daemon.url, [one], path))[0] for one in free]
        *found, a, b, c, d = asyncio.run(all_of(daemon.url, [*bodies, *free], path))
    assert [a, b, c, d] == wanted
    for schema, answer in zip(some, found, strict=False):
        fits(schema, answer)
    for pattern, (text, finish) in zip(PATTERNS, found[len(some) :], strict=True):
        python = pattern.replace(r"\p{L}", r"[^\W\d_]").replace("[[:alpha:]]", "[a-zA-Z]")
        assert finish == "stop", (pattern, text)
        assert re.fullmatch(python, text), (pattern, text)
