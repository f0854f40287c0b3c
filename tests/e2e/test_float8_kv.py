"""Two models of one folder, one with K and V as float8: both answer, and twice the tokens fit."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from support.direct_runner import DirectRunner
from support.live import LiveDaemon
from support.shared import Shared
from support.tiny import tiny_served
from support.two_units import ask as asked
from support.two_units import models
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import LoadModel, ModelInfo, MoveModel, UnloadModel
from muxd.config import ModelConfig
from muxd.errors import MuxdError

pytestmark = on(*EVERYWHERE)

PROMPT = "The quick brown fox jumps over the lazy dog. " * 2
POOL = 48 * 4096  # 12 rows of 2 layers and 2 KV heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("models") / "tiny", 3)


def config(folder: Path, extra: str = "") -> str:
    models = "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\nkv_dtype = "{kind}"\n'
        for name, kind in (("own", "auto"), ("kept", "fp8"))
    )
    return f'[pool]\nbytes = "{POOL}"\nblock_bytes = 4096\n{extra}{models}'


@pytest.fixture(scope="module")
def shared(where: Where, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with Shared(where, config(folder), tmp_path_factory.mktemp("float8")) as shared:
        yield shared


@pytest.fixture
def daemon(shared: Shared) -> Iterator[LiveDaemon]:
    with shared.lent() as daemon:
        yield daemon


def ask(daemon: LiveDaemon, model: str, prompt: str = PROMPT, tokens: int = 24) -> tuple[list[int], int]:
    """The answer, and how many tokens of the prompt were there already."""
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return list(answer.json()["choices"][0]["token_ids"]), cached


def direct(folder: Path, kind: Any, prompt: str, tokens: int, paged: bool) -> list[int]:
    from muxd.text.tokenizer import Tokenizer

    ids = list(Tokenizer.load(folder).encode(prompt))
    runner = DirectRunner(folder, "bfloat16", kv_dtype=kind, block_bytes=4096, paged=paged)
    return runner.generate([ids], tokens)[0]


def row(daemon: LiveDaemon, name: str) -> ModelInfo:
    return next(row for row in daemon.admin.models() if row.name == name)


def whole(daemon: LiveDaemon) -> bool:
    books = daemon.admin.audit()
    return not books.fault and books.held_blocks == 0


def test_both_answer_as_alone_and_the_books_balance(where: Where, daemon: LiveDaemon, folder: Path) -> None:
    for name, kind in (("own", "auto"), ("kept", "fp8")):
        alone = ask(daemon, name)[0]
        if where.stand_in or not where.gpu:  # else other kernels round otherwise
            assert alone == direct(folder, kind, PROMPT, 24, where.stand_in)
    jobs = [(name, f"{i} {PROMPT}") for i in range(6) for name in ("own", "kept")]
    with ThreadPoolExecutor(len(jobs)) as clients:
        together = list(clients.map(lambda job: ask(daemon, *job)[0], jobs))
    assert [len(tokens) for tokens in together] == [24] * len(jobs)
    assert whole(daemon)


def test_twice_the_tokens_fit_and_are_shared(daemon: LiveDaemon) -> None:
    own, kept = row(daemon, "own"), row(daemon, "kept")
    assert (own.config.kv_dtype, kept.config.kv_dtype) == ("auto", "fp8")
    assert kept.row_tokens == 2 * own.row_tokens == 4096 // (2 * 16)
    assert kept.kv_max_bytes == own.kv_max_bytes == POOL
    shown = muxctl(daemon, "models")
    assert "KV TYPE" in shown
    assert "fp8" in shown
    long = "Of its own: " + PROMPT * 3
    for name, size in (("own", own.row_tokens), ("kept", kept.row_tokens)):
        first, again = ask(daemon, name, long), ask(daemon, name, long)
        assert (first[1], again[1]) == (0, (len(long)) // size * size)
        assert again[0][:4] == first[0][:4]  # bfloat16 rounds differently by how a prompt is cut
    assert whole(daemon)


def test_the_longest_request_is_twice_as_long(where: Where, folder: Path, tmp_path: Path) -> None:
    """A pool of three rows."""
    with where.live(config(folder).replace(str(POOL), str(12 * 4096)), tmp_path) as daemon:
        longest = {
            name: int(httpx.get(f"{daemon.url}/v1/models/{name}", timeout=60).json()["max_model_len"])
            for name in ("own", "kept")
        }
        assert longest == {"own": 3 * 64, "kept": 3 * 128}
        for name, most in longest.items():
            prompt = "x" * (most - 30)
            assert len(ask(daemon, name, prompt, 29)[0]) == 29
            body = {"model": name, "prompt": prompt + "y" * 30, "max_tokens": 30}
            assert httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60).status_code == 400
        assert whole(daemon)


def test_the_same_rows_for_a_process_of_each_phase(
    where: Where, folder: Path, tmp_path: Path, daemon: LiveDaemon
) -> None:
    split = '[scheduler]\nsplit_phases = "yes"\nprefill_tokens = 32\n'
    apart = tmp_path / "apart"
    apart.mkdir()
    with where.live(config(folder, split), apart) as other:
        assert len([one for one in other.admin.ps() if one.model == "kept"]) == 2
        for name in ("own", "kept"):
            assert ask(other, name)[0] == ask(daemon, name)[0]
        assert whole(other)


def test_a_model_loaded_at_runtime_chooses_its_own(daemon: LiveDaemon, folder: Path) -> None:
    shown = muxctl(daemon, "load", "--name", "new", "--path", str(folder), "--kv-dtype", "fp8")
    assert shown == "new is ready.\n"
    assert (row(daemon, "new").config.kv_dtype, row(daemon, "new").row_tokens) == ("fp8", 128)
    assert ask(daemon, "new")[0] == ask(daemon, "kept")[0]
    assert [step.stage for step in daemon.admin.unload(UnloadModel("new"))][-1] == "unloaded"
    assert [step.stage for step in daemon.admin.load(LoadModel("new"))][-1] == "ready"
    assert row(daemon, "new").row_tokens == 128, "as it was"
    wrong = ModelConfig("x", str(folder), kv_dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(MuxdError, match=r"Invalid enum value 'int4' - at `\$\.model\.kv_dtype`"):
        list(daemon.admin.load(LoadModel(wrong)))
    assert whole(daemon)


@pytest.mark.usefixtures("two_devices")
def test_a_model_that_moves_takes_its_type_along(where: Where, tmp_path: Path) -> None:
    """Two devices: the plan placed it, an operator moves it, in a pool that grows by what it leaves."""
    made = models(where, tmp_path, {"a": "", "b": ""}, 'kv_dtype = "fp8"\n')
    text = "[pool]\ngrow = true\n" + where.two_devices() + made
    with where.live(text, tmp_path) as daemon:
        answer, begun = asked(daemon, "a", 64), row(daemon, "a")
        assert (begun.config.kv_dtype, begun.row_tokens) == ("fp8", 8192 // (2 * 16))
        to = next(name for name in (where.first, where.second) if name != begun.device)
        assert list(daemon.admin.move(MoveModel("a", to)))[-1].stage == "moved"
        assert (row(daemon, "a").device, row(daemon, "a").row_tokens) == (to, begun.row_tokens)
        assert asked(daemon, "a", 64) == answer
        assert whole(daemon)


def muxctl(daemon: LiveDaemon, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxctl", *arguments, "--socket", str(daemon.socket)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/", check=True,
    )  # fmt: skip
    return done.stdout
