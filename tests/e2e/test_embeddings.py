"""Models that embed texts and a model that answers in one pool: vectors are transformers', answers are those
that there are without them, whoever is killed meanwhile."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.live import LiveDaemon, live
from support.shared import Shared
from support.tiny import byte_tokenizer
from support.tiny_models import bert, llama, qwen3, words
from support.where import EVERYWHERE, Where, on
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from muxd.config import home

Models = dict[str, tuple[Path, PreTrainedModel]]
CHAT: dict[str, Any] = {
    "model": "chat", "prompt": "Once upon a time", "max_tokens": 200, "temperature": 0, "ignore_eos": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = {}
    for name, make in {"chat": llama, "encoder": bert, "decoder": qwen3}.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = folder, make(folder)
        byte_tokenizer(folder)
    return made


def config(models: Models, split: str) -> str:
    """A decoder's prompts are cut into chunks, an encoder's never."""
    pooling = {"decoder": 'pooling = "last"\n'}
    head = f'[pool]\nbytes = "64M"\n[scheduler]\nprefill_tokens = 64\nsplit_phases = "{split}"\n'
    return head + "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n{pooling.get(name, "")}'
        for name, (folder, _) in models.items()
    )


@pytest.fixture(scope="module", params=["no", "yes"])
def shared(
    request: pytest.FixtureRequest, where: Where, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    with Shared(where, config(models, request.param), tmp_path_factory.mktemp("embedded")) as shared:
        yield shared


@pytest.fixture
def daemon(shared: Shared) -> Iterator[LiveDaemon]:
    with shared.lent() as daemon:
        yield daemon


@torch.inference_mode()
def wanted(model: PreTrainedModel, tokens: list[int], pooling: str) -> NDArray[np.float32]:
    base = getattr(model, "model", model)
    states = base(torch.tensor([tokens])).last_hidden_state[0].float()
    pooled: NDArray[np.float32] = (states.mean(0) if pooling == "mean" else states[-1]).numpy()
    return pooled / np.float32(np.linalg.norm(pooled))


async def post(session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
    async with session.post(path, json=body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def embedded(
    session: aiohttp.ClientSession, model: str, texts: list[list[int]]
) -> list[NDArray[np.float64]]:
    answer = await post(session, "/v1/embeddings", {"model": model, "input": texts})
    return [np.array(one["embedding"]) for one in answer["data"]]


TEXTS = [words(n, seed=n) for n in (1, 9, 64, 65, 130, 300)] * 4


@on(*EVERYWHERE)
def test_vectors_beside_answers(daemon: LiveDaemon, models: Models) -> None:
    async def scene() -> None:
        async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(240)) as session:
            alone = await post(session, "/v1/completions", CHAT)
            answers = asyncio.gather(*(post(session, "/v1/completions", CHAT) for _ in range(3)))
            found = await asyncio.gather(*(embedded(session, name, TEXTS) for name in ("encoder", "decoder")))
            for answer in await answers:
                assert answer["choices"] == alone["choices"]
            for (name, pooling), vectors in zip(
                (("encoder", "mean"), ("decoder", "last")), found, strict=True
            ):
                for tokens, vector in zip(TEXTS, vectors, strict=True):
                    np.testing.assert_allclose(vector, wanted(models[name][1], tokens, pooling), atol=1e-4)

    asyncio.run(scene())
    assert daemon.admin.audit().fault == ""
    with httpx.Client(base_url=daemon.url, timeout=60) as client:
        for body in (
            {"model": "encoder", "prompt": "a"},
            {"model": "decoder", "prompt": "a", "max_tokens": 2},
        ):
            status = client.post("/v1/completions", json=body).status_code
            assert status == (400 if body["model"] == "encoder" else 200)
        assert client.post("/v1/embeddings", json={"model": "chat", "input": "a"}).status_code == 400


@pytest.mark.parametrize("shared", ["no"], indirect=True)
@on("cpu", "stand-in")
def test_texts_of_a_worker_that_dies_are_embedded_by_the_next(daemon: LiveDaemon, models: Models) -> None:
    async def scene() -> None:
        async with aiohttp.ClientSession(daemon.url, timeout=aiohttp.ClientTimeout(240)) as session:
            with daemon.no_worker_starts():
                os.kill(daemon.workers()["encoder"], signal.SIGKILL)
                asked = asyncio.create_task(embedded(session, "encoder", TEXTS[:6]))
                await asyncio.sleep(0)
            for tokens, vector in zip(TEXTS, await asked, strict=False):
                np.testing.assert_allclose(vector, wanted(models["encoder"][1], tokens, "mean"), atol=1e-4)

    asyncio.run(scene())


@pytest.mark.demo
@pytest.mark.slow
def test_all_minilm(tmp_path: Path) -> None:
    """The published encoder, through its own tokenizer, and how near texts are to each other."""
    folder = home() / "models" / "all-minilm-l6-v2"
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not there; CONTRIBUTING.md says where it comes from")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The stock market fell.", "Größe!"] * 8
    text = f'[pool]\nbytes = "64M"\n[[model]]\nname = "mini"\npath = "{folder}"\n'
    with live(text, tmp_path) as daemon, httpx.Client(base_url=daemon.url, timeout=120) as client:
        answer = client.post("/v1/embeddings", json={"model": "mini", "input": texts}).json()
        for said, one in zip(texts, answer["data"], strict=True):
            vector = wanted(model, tokenizer(said)["input_ids"], "mean")
            np.testing.assert_allclose(one["embedding"], vector, atol=1e-3)
        body = {"model": "mini", "query": texts[0], "documents": texts[1:3]}
        results = client.post("/v1/rerank", json=body).json()["results"]
        assert [one["index"] for one in results] == [0, 1]
        assert results[0]["relevance_score"] > results[1]["relevance_score"] + 0.3
        pair = {"model": "mini", "text_1": texts[0], "text_2": texts[1:3]}
        scores = [one["score"] for one in client.post("/v1/score", json=pair).json()["data"]]
        assert scores == pytest.approx([one["relevance_score"] for one in results], abs=1e-5)
