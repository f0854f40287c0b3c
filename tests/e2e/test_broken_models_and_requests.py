"""A daemon with one good and many broken model folders, and clients that send nonsense: the good stream goes
on, everybody else hears what is wrong."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from support.live import LiveDaemon
from support.tiny import tiny_llama, tiny_served
from support.where import EVERYWHERE, Where, on

pytestmark = on(*EVERYWHERE)


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _wrong_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))


def _unknown_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (folder / "config.json").write_text(json.dumps(config | changed))


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _pipe(folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    os.mkfifo(folder / "generation_config.json")


def _deep(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a":' * 100_000)


def _layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**18}))


def _wide_head(folder: Path) -> None:
    tiny_llama(folder, head_dim=4096)


# How to break a folder, and what the reason must name.
BREAKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncated, "model.safetensors"),
    "missing-shard": (_missing_shard, "model-00002-of-00002.safetensors"),
    "wrong-shape": (_wrong_shape, "mlp"),
    "unknown-architecture": (_unknown_architecture, "Mamba"),
    "pickle": (_pickle, "safetensors"),
    "pipe": (_pipe, "generation_config.json cannot be read: it is a pipe"),
    "deep": (_deep, "tokenizer_config.json is not valid JSON: it is nested too deeply"),
    "layers": (_layers, "num_hidden_layers must be at most"),
    "wide-head": (_wide_head, "pool.block_bytes: 8192 holds no token of a model with head_dim 4096"),
    "no-tokenizer": (_no_tokenizer, "tokenizer.json"),
}


@pytest.fixture(scope="module")
def daemon(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    root = tmp_path_factory.mktemp("models")
    tiny_served(root / "good")
    for name, (damage, _) in BREAKS.items():
        damage(tiny_served(root / name))
    names = ["good", *BREAKS, "no-such-folder"]
    config = "".join(f'[[model]]\nname = "{name}"\npath = "{root / name}"\n' for name in names)
    with where.live(f'[pool]\nbytes = "16M"\n{config}', root) as daemon:
        yield daemon


def body(**changes: object) -> dict[str, object]:
    return {"model": "good", "prompt": "Hello", "max_tokens": 4, "temperature": 0} | changes


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_folder_is_refused_with_file_and_reason(daemon: LiveDaemon, name: str) -> None:
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body(model=name), timeout=60)
    error = answer.json()["error"]
    assert answer.status_code == 503
    assert BREAKS[name][1] in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    states = {row.name: row.state for row in daemon.admin.models()}
    assert states[name] == "failed"
    assert states["good"] == "ready"


def test_a_folder_that_is_not_there_says_so(daemon: LiveDaemon) -> None:
    detail = {row.name: row.detail for row in daemon.admin.models()}["no-such-folder"]
    assert "no-such-folder" in detail
    assert "not a folder" in detail


NONSENSE = {
    "malformed JSON": (400, b'{"model": "good", '),
    "wrong type": (400, json.dumps(body(max_tokens="many")).encode()),
    "fewer than no tokens": (400, json.dumps(body(max_tokens=-2)).encode()),
    "unknown model": (404, json.dumps(body(model="gpt-9")).encode()),
    "prompt over the context": (400, json.dumps(body(prompt=[5] * 600)).encode()),
    "ids beyond the vocabulary": (400, json.dumps(body(prompt=[5, 100_000])).encode()),
    "10 MB": (413, json.dumps(body(prompt="x" * 10_000_000)).encode()),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_answered_and_a_running_stream_does_not_notice(daemon: LiveDaemon, what: str) -> None:
    status, content = NONSENSE[what]
    with daemon.client() as client:
        stream = client.completions.create(
            model="good", prompt="abc", max_tokens=300, temperature=0, stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
        chunks = iter(stream)
        seen = list(next(chunks).choices[0].token_ids)  # type: ignore[attr-defined]
        answer = httpx.post(
            f"{daemon.url}/v1/completions",
            content=content,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        for chunk in chunks:
            seen += getattr(chunk.choices[0], "token_ids", [])
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(seen) == 300
    pool = daemon.status().pool
    assert pool.free_blocks + pool.cached_blocks == pool.total_blocks


def test_a_method_nobody_serves(daemon: LiveDaemon) -> None:
    answer = httpx.request("DELETE", f"{daemon.url}/v1/completions", timeout=60)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_chat_without_a_template_says_how_to_set_one(daemon: LiveDaemon) -> None:
    with daemon.client() as client, pytest.raises(openai.BadRequestError, match=r"chat_template = \"FILE\""):
        client.chat.completions.create(model="good", messages=[{"role": "user", "content": "Hi"}])
