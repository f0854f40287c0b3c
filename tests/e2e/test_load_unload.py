"""Models that come and go while a daemon serves: who is told what, and what is left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
from support import leaks
from support.live import LiveDaemon
from support.shared import Shared
from support.tiny import tiny_served
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import LoadModel, ModelInfo, UnloadModel
from muxd.config import ModelConfig
from muxd.errors import MuxdError

pytestmark = on(*EVERYWHERE)

LONG = 1000  # tokens: seconds of decoding, while everything else here takes milliseconds


def folder(path: Path, seed: int, positions: int = 4096) -> Path:
    """A tiny model whose answers may be long."""
    tiny_served(path, seed)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return path


def config(root: Path, *, extra: str = "", min_a: str = "0") -> str:
    models = "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder(root / name, seed)}"\ndtype = "float32"\n'
        f'quota = {{ min = "{min_a if name == "a" else "0"}" }}\n'
        for seed, name in enumerate("ab")
    )
    return f'[pool]\nbytes = "16M"\n{extra}\n{models}'


@pytest.fixture(scope="module")
def shared(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("load")
    with Shared(where, config(root), root) as shared:
        yield shared


@pytest.fixture
def daemon(shared: Shared) -> Iterator[LiveDaemon]:
    with shared.lent() as daemon:
        yield daemon


def ask(daemon: LiveDaemon, model: str, tokens: int = 8) -> list[int]:
    body = {"model": model, "prompt": "Hello", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body | {"return_token_ids": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def stream(client: openai.OpenAI, model: str, tokens: int = LONG) -> Iterator[str | None]:
    """The finish reason of every chunk, the first of which has come."""
    chunks = client.completions.create(
        model=model, prompt="Once", stream=True, max_tokens=tokens, temperature=0,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    reasons = (chunk.choices[0].finish_reason for chunk in chunks)
    yield next(reasons)
    yield from reasons


def row(daemon: LiveDaemon, model: str) -> ModelInfo:
    return next(row for row in daemon.admin.models() if row.name == model)


def metrics(daemon: LiveDaemon) -> str:
    return httpx.get(f"{daemon.url}/metrics", timeout=60).text


def count(daemon: LiveDaemon, series: str) -> float:
    return next(float(line.split()[-1]) for line in metrics(daemon).splitlines() if line.startswith(series))


def unload(daemon: LiveDaemon, model: str, *, now: bool = False) -> None:
    assert [step.stage for step in daemon.admin.unload(UnloadModel(model, now))][-1] == "unloaded"


def load(daemon: LiveDaemon, wanted: LoadModel) -> None:
    assert [step.stage for step in daemon.admin.load(wanted)][-1] == "ready"


def whole(daemon: LiveDaemon) -> bool:
    """No block is held or lost."""
    books = daemon.admin.audit()
    return not books.fault and not books.held_blocks


def test_an_unload_refuses_new_requests_answers_old_ones_and_gives_everything_back(
    where: Where, daemon: LiveDaemon
) -> None:
    before = ask(daemon, "a")
    worker = daemon.workers()["a"]
    where.check_regions(daemon.process.pid, "pool", "weights", "weights")
    with daemon.client() as client:
        running = stream(client, "a")
        next(running)
        steps = daemon.admin.unload(UnloadModel("a"))
        assert next(steps).stage == "draining"
        assert row(daemon, "a").state == "unloading"
        with pytest.raises(openai.InternalServerError, match="`muxctl load a`") as caught:
            client.completions.create(model="a", prompt="x")
        assert (caught.value.status_code, caught.value.code) == (503, "model_unloaded")
        assert ask(daemon, "b")
        for attempt in (daemon.admin.unload(UnloadModel("b")), daemon.admin.load(LoadModel("a"))):
            with pytest.raises(MuxdError, match=r"a is being unloaded \(draining\)"):
                next(attempt)
        assert list(running)[-1] == "length"
        assert list(steps)[-1].stage == "unloaded"
    assert leaks.gone(worker, 0)
    where.check_regions(daemon.process.pid, "pool", "weights")
    assert [one.model for one in daemon.admin.quota()] == ["b"]
    shown = row(daemon, "a")
    assert (shown.state, shown.pid, shown.weights_bytes, shown.kv_used_bytes) == ("unloaded", None, 0, 0)
    listed = {
        model["id"]: model["status"]
        for model in httpx.get(f"{daemon.url}/v1/models", timeout=60).json()["data"]
    }
    assert (listed["a"], listed["b"]) == ("unloaded", "ready")
    series = metrics(daemon)
    assert 'muxd_model_state{model="a",state="unloaded"} 1.0' in series
    assert 'muxd_pool_blocks{model="a",state="cached"} 0.0' in series
    assert whole(daemon)
    load(daemon, LoadModel("a"))
    assert ask(daemon, "a") == before
    where.check_regions(daemon.process.pid, "pool", "weights", "weights")
    marks = [mark.kind for mark in daemon.admin.trace()[0].marks if mark.model == "a"]
    assert marks[-6:] == ["worker ready", "unloading", "unloaded", "loading", "worker ready", "loaded"]


def test_now_fails_what_runs_and_may_be_said_later(daemon: LiveDaemon) -> None:
    series = 'muxd_requests_total{model="a",outcome="failed"}'
    failed = count(daemon, series)
    with daemon.client() as client:
        for hastened in (False, True):
            running = stream(client, "a")
            next(running)
            if hastened:
                first = daemon.admin.unload(UnloadModel("a"))
                assert next(first).stage == "draining"
            unload(daemon, "a", now=True)
            with pytest.raises(openai.APIError, match="is unloaded") as caught:
                list(running)
            assert caught.value.code == "model_unloaded"
            if hastened:
                assert list(first)[-1].stage == "unloaded"
            assert whole(daemon)
            load(daemon, LoadModel("a"))
        assert ask(daemon, "a")
    assert count(daemon, series) == failed + 2


def test_memory_comes_back_every_time(daemon: LiveDaemon) -> None:
    """Four times in and out: what one of them kept would be there four times."""
    unload(daemon, "a")
    load(daemon, LoadModel("a"))
    pid, rounds = daemon.process.pid, 4
    before, resident = leaks.descriptors(pid), field(pid, "RssAnon")
    for _ in range(rounds):
        unload(daemon, "a")
        load(daemon, LoadModel("a"))
    # A connection that is just being closed may still be there, and on a GPU a question to MPS.
    until = time.monotonic() + 10
    while not settled(before, after := leaks.descriptors(pid), rounds) and time.monotonic() < until:
        continue
    assert settled(before, after, rounds), sorted(after.values())
    assert field(pid, "RssShmem") < row(daemon, "a").weights_bytes, "the daemon still maps weights"
    assert field(pid, "RssAnon") - resident < 8 << 20


def settled(before: dict[int, str], after: dict[int, str], rounds: int) -> bool:
    return len(after) - len(before) < rounds and sorted(kinds(after)) == sorted(kinds(before))


def kinds(descriptors: dict[int, str]) -> list[str]:
    """All but sockets and pipes, which come and go."""
    return [name for name in descriptors.values() if not name.startswith(("socket:", "pipe:"))]


def field(pid: int, name: str) -> int:
    """Bytes, from /proc/PID/status."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_nothing(daemon: LiveDaemon) -> None:
    unload(daemon, "a")
    before = leaks.descriptors(daemon.process.pid)
    file = daemon.folder / "a" / "model.safetensors"
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:5000])
    with pytest.raises(MuxdError, match=r"model\.safetensors"):
        load(daemon, LoadModel("a"))
    shown = row(daemon, "a")
    assert shown.state == "failed"
    assert "model.safetensors" in shown.detail
    assert [one.model for one in daemon.admin.quota()] == ["b"]
    assert sorted(kinds(leaks.descriptors(daemon.process.pid))) == sorted(kinds(before))
    answer = httpx.post(f"{daemon.url}/v1/completions", json={"model": "a", "prompt": "x"}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    file.write_bytes(whole_file)
    load(daemon, LoadModel("a"))
    assert ask(daemon, "a")


def test_a_worker_that_refuses_is_taken_down_again(where: Where, daemon: LiveDaemon) -> None:
    """The folder changes after muxd has read it and before the worker does, and nothing shows that it has."""
    unload(daemon, "a")
    file = daemon.folder / "a" / "config.json"
    good, was = file.read_text(), file.stat()
    other = good.replace("LlamaForCausalLM", "MambaForCausalLM")
    assert other != good
    with daemon.no_worker_starts():
        steps = daemon.admin.load(LoadModel("a"))
        while next(steps).stage != "starting":
            continue
        file.write_text(other)
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    queued = httpx.post(f"{daemon.url}/v1/completions", json={"model": "a", "prompt": "x"}, timeout=60)
    assert queued.status_code == 503
    assert "Mamba" in queued.json()["error"]["message"]
    with pytest.raises(MuxdError, match="Mamba"):
        list(steps)
    assert (row(daemon, "a").state, row(daemon, "a").pid) == ("failed", None)
    where.check_regions(daemon.process.pid, "pool", "weights")
    assert [one.model for one in daemon.admin.quota()] == ["b"]
    file.write_text(good)
    load(daemon, LoadModel("a"))
    assert ask(daemon, "a")


def test_a_model_from_outside_the_file(daemon: LiveDaemon, tmp_path: Path) -> None:
    new, known = folder(tmp_path / "new", 7), {one.name for one in daemon.admin.models()}
    for wanted, word in (
        (LoadModel(ModelConfig("c", str(tmp_path / "nowhere"))), "not a folder"),
        (LoadModel(ModelConfig("a", str(new))), "two models are called 'a'"),
        (LoadModel("c"), "no model 'c'"),
    ):
        with pytest.raises(MuxdError, match=word):
            load(daemon, wanted)
    assert {one.name for one in daemon.admin.models()} == known >= {"a", "b"}
    load(daemon, LoadModel(ModelConfig("c", str(new), dtype="float32", ttft_slo=30.0)))
    assert len(ask(daemon, "c")) == 8
    assert next(row.goodput for row in daemon.admin.models() if row.name == "c") == 1.0, "by its own target"
    unload(daemon, "c")
    load(daemon, LoadModel("c"))
    assert len(ask(daemon, "c")) == 8
    unload(daemon, "c")


def test_a_guarantee_goes_to_the_others_and_comes_back(where: Where, tmp_path: Path) -> None:
    def context(daemon: LiveDaemon) -> int:
        return int(httpx.get(f"{daemon.url}/v1/models/b", timeout=60).json()["max_model_len"])

    with where.live(config(tmp_path, min_a="95%").replace("16M", "2M"), tmp_path) as daemon:
        short = context(daemon)
        unload(daemon, "a")
        assert context(daemon) == 4096 > short
        assert len(ask(daemon, "b", short + 100)) == short + 100
        load(daemon, LoadModel("a"))
        assert context(daemon) == short


def test_all_models_may_go(daemon: LiveDaemon) -> None:
    unload(daemon, "a")
    unload(daemon, "b")
    assert daemon.workers() == {}
    assert whole(daemon)
    assert daemon.admin.audit().cached_blocks == 0
    load(daemon, LoadModel("b"))
    assert ask(daemon, "b")


@pytest.mark.parametrize(
    "what",
    ["draining", *(pytest.param(one, marks=pytest.mark.slow) for one in ("reading", "weights")), "starting"],
)
def test_sigterm_in_the_midst_of_it_leaves_nothing(where: Where, tmp_path: Path, what: str) -> None:
    with where.live(config(tmp_path, extra="[server]\nshutdown_grace = 0.01\n"), tmp_path) as daemon:
        with daemon.client() as client:
            if what == "draining":
                running: Any = stream(client, "a")
                next(running)
                steps = daemon.admin.unload(UnloadModel("a"))
            else:
                unload(daemon, "a")
                steps = daemon.admin.load(LoadModel("a"))
            for step in steps:
                if step.stage in (what, "ready"):
                    break
            pids = [daemon.process.pid, *daemon.workers().values()]
            assert daemon.terminate() == 0, daemon.log
            if what == "draining":
                with pytest.raises(openai.APIError, match="shutting down"):
                    list(running)
        assert all(leaks.gone(pid) for pid in pids)
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.log


def muxctl(daemon: LiveDaemon, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxctl", *arguments, "--socket", str(daemon.socket)],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip


def test_muxctl_says_it_in_words_and_exit_codes(daemon: LiveDaemon, tmp_path: Path) -> None:
    new = folder(tmp_path / "new", 7)
    names = ", ".join(one.name for one in daemon.admin.models())
    for arguments, code, out, err in (
        (("unload", "a"), 0, "a is unloaded; `muxctl load a` brings it back.\n", ""),
        (("unload", "a"), 1, "", "muxctl: a is unloaded already\n"),
        (("load", "b"), 1, "", "muxctl: b is ready; `muxctl unload b` first to load it anew\n"),
        (("load", "z"), 1, "", f"muxctl: there is no model 'z'; there are: {names}\n"),
        (("load", "a"), 0, "a is ready.\n", ""),
        (("load", "--name", "d", "--path", str(new)), 0, "d is ready.\n", ""),
        (("unload", "d", "--now", "--json"), 0, None, ""),
    ):
        done = muxctl(daemon, *arguments)
        assert (done.returncode, done.stderr) == (code, err), arguments
        assert out is None or done.stdout == out
    assert json.loads(done.stdout)["stage"] == "unloaded"
    audit = muxctl(daemon, "status", "--audit")
    assert audit.returncode == 0
    assert "are accounted for" in audit.stdout
