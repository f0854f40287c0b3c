"""A base and its adapters through the daemon: each is a model to its clients, all of them are computed
together, and each answers as transformers does with the adapter merged.
"""

import asyncio
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.adapters import adapter
from support.live import LiveDaemon, live
from support.logits import greedy_choices
from support.tiny import byte_tokenizer
from support.tiny_models import llama, words
from transformers import PreTrainedModel

from muxd.admin.schemas import ModelInfo, SleepModel, UnloadModel
from muxd.device.cpu import available_cores
from muxd.errors import MuxdError

TOKENS = 24
SERVED = ("base", "pirate", "clerk")
Merged = dict[str, PreTrainedModel]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Merged]:
    root = tmp_path_factory.mktemp("lora")
    base = llama(root / "base")
    byte_tokenizer(root / "base")
    made = {
        "base": base,
        "pirate": adapter(root / "pirate", base, seed=1, rank=8),
        "clerk": adapter(root / "clerk", base, seed=2, targets=("q_proj", "v_proj")),
    }
    adapter(root / "broken", base, seed=3)
    file = root / "broken" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, file)
    return root, made


@pytest.fixture(scope="module")
def daemon(merged: tuple[Path, Merged], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with live(config(merged[0]), tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


def config(root: Path) -> str:
    return (
        '[server]\ndevice = "cpu"\n[pool]\nbytes = "32M"\n'
        f'[[model]]\nname = "base"\npath = "{root / "base"}"\ndtype = "float32"\n'
    ) + "".join(
        f'[[model]]\nname = "{name}"\nbase = "base"\nlora = "{root / name}"\naliases = ["{name}-1"]\n'
        for name in ("pirate", "broken", "clerk")
    )


def body(model: str, prompt: list[int], **more: Any) -> dict[str, Any]:
    return {
        "model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    } | more  # fmt: skip


async def together(daemon: LiveDaemon, asked: list[tuple[str, list[int]]]) -> list[dict[str, Any]]:
    async def one(session: aiohttp.ClientSession, name: str, prompt: list[int]) -> dict[str, Any]:
        async with session.post("/v1/completions", json=body(name, prompt)) as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found

    async with aiohttp.ClientSession(daemon.url) as session:
        return list(await asyncio.gather(*(one(session, *each) for each in asked)))


def check(models: Merged, asked: list[tuple[str, list[int]]], answers: list[dict[str, Any]]) -> None:
    for (name, prompt), answer in zip(asked, answers, strict=True):
        tokens = answer["choices"][0]["token_ids"]
        assert answer["model"] == name
        assert len(tokens) == TOKENS
        assert tokens == greedy_choices(models[name], prompt, tokens), f"{name}, {len(prompt)} tokens"


def row(daemon: LiveDaemon, name: str) -> ModelInfo:
    return next(one for one in daemon.admin.models() if one.name == name)


def cached(answer: dict[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_all_at_once_each_answers_as_its_own_merged_model(
    daemon: LiveDaemon, merged: tuple[Path, Merged]
) -> None:
    asked = [(name, words(length, 1)) for length in (5, 40, 90, 200) for name in SERVED]
    answers = asyncio.run(together(daemon, asked))
    check(merged[1], asked, answers)
    whose = [daemon.admin.why(answer["id"])[0] for answer in answers]
    assert [(one.model, one.adapter or "base") for one in whose] == [("base", name) for name, _ in asked]
    series = httpx.get(f"{daemon.url}/metrics", timeout=60).text
    for name in SERVED:
        assert f'muxd_generation_tokens_total{{model="{name}"}} {4.0 * TOKENS}' in series
        assert row(daemon, name).tokens_total == 4 * TOKENS
    assert row(daemon, "pirate").pid == row(daemon, "base").pid


def test_a_prefix_is_found_by_its_own_adapter_and_by_no_other(
    daemon: LiveDaemon, merged: tuple[Path, Merged]
) -> None:
    prompt = words(150, 2)
    asked = [(name, prompt) for name in SERVED]
    for name in SERVED:  # one after another, so that the one before has left all its rows
        [answer] = asyncio.run(together(daemon, [(name, prompt)]))
        assert cached(answer) == 0, name
        check(merged[1], [(name, prompt)], [answer])
    again = asyncio.run(together(daemon, asked))
    assert all(cached(answer) >= 100 for answer in again)
    check(merged[1], asked, again)


def test_a_broken_adapter_fails_alone_with_its_sentence(daemon: LiveDaemon) -> None:
    shown = row(daemon, "broken")
    assert shown.state == "failed"
    assert "adapter_model.safetensors" in shown.detail
    assert "not finite" in shown.detail
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body("broken", [5]), timeout=60)
    assert answer.status_code == 503
    assert "adapter_model.safetensors" in answer.json()["error"]["message"]
    assert [row(daemon, name).state for name in SERVED] == ["ready"] * 3


def test_every_face_knows_it_by_its_name(daemon: LiveDaemon) -> None:
    listed = {one["id"]: one for one in httpx.get(f"{daemon.url}/v1/models", timeout=60).json()["data"]}
    assert listed["pirate"]["parent"] == listed["clerk-1"]["parent"] == "base"
    assert listed["base"]["parent"] is None
    asked: dict[str, dict[str, Any]] = {
        "/api/generate": {"prompt": "hello", "raw": True, "stream": False, "options": {"num_predict": 3}},
        "/v1/completions": {"prompt": "hello", "max_tokens": 3},
        "/tokenize": {"prompt": "hello"},
    }
    for path, more in asked.items():
        answer = httpx.post(f"{daemon.url}{path}", json={"model": "pirate", **more}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json().get("model", "pirate") == "pirate"
    long = {"model": "pirate-1", "prompt": "hello " * 60, "max_tokens": 1, "user": "x" * 70_000}
    answer = httpx.post(f"{daemon.url}/v1/completions", json=long, timeout=60)  # read in a text process
    assert (answer.status_code, answer.json()["model"]) == (200, "pirate"), answer.text


def test_a_sleeping_base_wakes_for_its_adapter(merged: tuple[Path, Merged], tmp_path: Path) -> None:
    asked = [("clerk", words(30, 3))]
    with live(config(merged[0]), tmp_path) as daemon:
        assert [step.stage for step in daemon.admin.sleep(SleepModel("base"))][-1] == "asleep"
        assert row(daemon, "clerk").state == "asleep"
        check(merged[1], asked, asyncio.run(together(daemon, asked)))
        assert [row(daemon, name).state for name in SERVED] == ["ready"] * 3


@pytest.mark.parametrize("host_memory", ["0", "auto"])
def test_a_base_wakes_without_an_adapter_whose_file_was_replaced(
    merged: tuple[Path, Merged], tmp_path: Path, host_memory: str
) -> None:
    """Who waits for that one is told why, and all others are answered."""
    root = tmp_path / "models"
    shutil.copytree(merged[0], root)
    asked = [("clerk", words(30, 3)), ("base", words(12, 5))]

    async def scene(daemon: LiveDaemon) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(daemon.url) as session:
            refused = asyncio.create_task(session.post("/v1/completions", json=body("pirate", words(8, 2))))
            answers = await together(daemon, asked)
            async with await refused as answer:
                assert answer.status >= 500
                assert "adapter_model.safetensors is another file" in await answer.text()
        return answers

    with live(f'{config(root)}[residency]\nhost_memory = "{host_memory}"\n', tmp_path) as daemon:
        assert [step.stage for step in daemon.admin.sleep(SleepModel("base"))][-1] == "asleep"
        shutil.copy(root / "clerk" / "adapter_model.safetensors", root / "pirate")
        check(merged[1], asked, asyncio.run(scene(daemon)))
        assert [row(daemon, name).state for name in SERVED] == ["ready", "failed", "ready"]
        assert "muxctl unload" in row(daemon, "pirate").detail


def test_a_reload_brings_an_adapter_and_takes_another(merged: tuple[Path, Merged], tmp_path: Path) -> None:
    root, models = merged
    first, *tables = config(root).split("[[model]]")
    first += '[scheduler]\nsplit_phases = "yes"\n'  # an adapter goes along to who decodes
    base, pirate, _, clerk = ("[[model]]" + table for table in tables)
    asked = [(name, words(20, 4)) for name in ("base", "clerk")]
    with live(first + base + pirate, tmp_path) as daemon:
        (daemon.folder / "muxd.toml").write_text(first + base + clerk)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_ready()
        assert [one.detail for one in daemon.admin.events() if one.kind == "reload"] == ["renew base"]
        assert [one.name for one in daemon.admin.models()] == ["base", "clerk"]
        check(models, asked, asyncio.run(together(daemon, asked)))
        answer = httpx.post(f"{daemon.url}/v1/completions", json=body("pirate", [5]), timeout=60)
        assert answer.status_code == 404


def test_an_adapter_comes_and_goes_with_its_base_alone(daemon: LiveDaemon) -> None:
    with pytest.raises(MuxdError, match="pirate is an adapter of base"):
        list(daemon.admin.unload(UnloadModel("pirate")))
    assert row(daemon, "pirate").state == "ready"


@pytest.mark.xdist_group("cores")
@pytest.mark.skipif(available_cores() < 2, reason="needs two cores")
def test_adapters_are_cut_with_their_base(merged: tuple[Path, Merged], tmp_path: Path) -> None:
    """Over two devices; one that is broken fails alone there, too."""
    mesh = '[[device]]\nname = "cpu:0+cpu:1"\ncores = [0, 1]\n'
    text = config(merged[0]).replace('[server]\ndevice = "cpu"\n', mesh)
    with live(text.replace('dtype = "float32"\n', 'dtype = "float32"\ntp = 2\n', 1), tmp_path) as daemon:
        asked = [(name, words(length, 1)) for length in (40, 90) for name in SERVED]
        check(merged[1], asked, asyncio.run(together(daemon, asked)))
        assert row(daemon, "broken").state == "failed"
        ranks = {one.rank for one in daemon.admin.ps() if one.model == "base"}
        assert ranks == {0, 1}
