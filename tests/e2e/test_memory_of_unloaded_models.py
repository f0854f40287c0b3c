"""What the weights of an unloaded model took becomes K and V of others, and goes back when it is loaded."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx2 as httpx
import pytest
from support.live import LiveDaemon
from support.shared import Shared
from support.two_units import ask as ask_on
from support.two_units import models, row, whole
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import LoadModel, MoveModel, QuotaChange, UnloadModel
from muxd.errors import MuxdError

pytestmark = on(*EVERYWHERE)

POOL = 64  # head blocks; a row of these models has 4, for 64 tokens
TOKENS = 300  # of an answer: 5 rows


def config(where: Where, root: Path, split: str, of_b: str = "") -> str:
    text = f'[pool]\nbytes = "{POOL * 8}K"\ngrow = true\n[scheduler]\nsplit_phases = "{split}"\n'
    return text + models(where, root, {"a": "", "b": ""}) + of_b


@pytest.fixture(scope="module", params=["no", "yes"])
def shared(
    request: pytest.FixtureRequest, where: Where, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("lent")
    with Shared(where, config(where, root, request.param), root) as shared:
        yield shared


@pytest.fixture
def daemon(shared: Shared) -> Iterator[LiveDaemon]:
    with shared.lent() as daemon:
        yield daemon


def ask(daemon: LiveDaemon, prompt: str) -> list[int]:
    body = {"model": "a", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body | {"return_token_ids": True}, timeout=200)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def metric(daemon: LiveDaemon, name: str) -> float:
    text = httpx.get(f"{daemon.url}/metrics", timeout=60).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


def used(daemon: LiveDaemon) -> int:
    return daemon.admin.audit().held_blocks


@contextmanager
def asked_all_along(daemon: LiveDaemon, prompts: list[str]) -> Iterator[list[list[list[int]]]]:
    """Each prompt is asked again and again, all beside each other, until the block ends; gives their answers.

    A load may outlast any one answer, since it gives way to them.
    """
    answers: list[list[list[int]]] = [[] for _ in prompts]
    ended = Event()

    def keep_asking(prompt: str, answers: list[list[int]]) -> None:
        while not ended.is_set():
            answers.append(ask(daemon, prompt))

    with ThreadPoolExecutor(len(prompts)) as pool:
        threads = [pool.submit(keep_asking, *pair) for pair in zip(prompts, answers, strict=True)]
        try:
            yield answers
        finally:
            ended.set()
    for thread in threads:
        thread.result()


def test_lent_memory_is_used_and_given_back_under_running_answers(where: Where, daemon: LiveDaemon) -> None:
    preempted = metric(daemon, "muxd_preemptions_total")
    prompts = [f"Tell me {i} " * 2 for i in range(6)]  # more than the pool holds at half their length
    alone = [ask(daemon, prompt) for prompt in prompts]
    where.check_regions(daemon.process.pid, "pool", "weights", "weights")
    list(daemon.admin.unload(UnloadModel("b")))
    where.check_regions(daemon.process.pid, "pool", "pool", "weights")  # its weights are room now
    with asked_all_along(daemon, prompts) as answers:
        while used(daemon) <= POOL:  # until some answer lies in lent memory
            continue
        steps = [step.stage for step in daemon.admin.load(LoadModel("b"))]
        assert steps[-1] == "ready"
        while metric(daemon, "muxd_preemptions_total") == preempted:  # they do not all fit any more
            continue
    for got, wanted in zip(answers, alone, strict=True):
        assert got
        assert all(answer == wanted for answer in got), "some were computed again elsewhere"
    where.check_regions(daemon.process.pid, "pool", "weights", "weights")
    for pid in daemon.workers().values():
        assert mapped(pid) == 2
    books = daemon.admin.audit()
    assert (books.fault, books.held_blocks) == ("", 0)
    list(daemon.admin.unload(UnloadModel("b")))  # and again, at the same addresses
    assert [ask(daemon, prompts[0])] == alone[:1]
    assert daemon.admin.audit().fault == ""


def mapped(pid: int) -> int:
    """Pieces of memory, weights included, that a worker maps."""
    text = Path(f"/proc/{pid}/maps").read_text()
    return len(set(re.findall(r" (\d+) +/memfd:(?:muxd|stand-in-gpu)", text)))


def test_a_new_worker_finds_the_lent_memory(daemon: LiveDaemon) -> None:
    alone, before = ask(daemon, "Once"), metric(daemon, "muxd_worker_restarts_total")
    list(daemon.admin.unload(UnloadModel("b")))
    os.kill(daemon.workers()["a"], signal.SIGKILL)
    # Who asks before muxd knows may be told of it.
    while metric(daemon, "muxd_worker_restarts_total") == before:
        continue
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: ask(daemon, "Once"), range(4))) == [alone] * 4
    for pid in daemon.workers().values():
        assert mapped(pid) == 3


def test_a_load_that_fails_leaves_the_memory_lent(where: Where, tmp_path: Path) -> None:
    with where.live(config(where, tmp_path, "no", 'quota = { min = "50%" }\n'), tmp_path) as daemon:
        list(daemon.admin.unload(UnloadModel("b")))
        daemon.admin.set_quota(QuotaChange("a", min="60%"))
        lent = daemon.status().pool.total_blocks
        assert lent > POOL
        for _ in range(2):
            with pytest.raises(MuxdError, match=r"quota\.min"):
                list(daemon.admin.load(LoadModel("b")))
            assert daemon.status().pool.total_blocks == lent
            where.check_regions(daemon.process.pid, "pool", "pool", "weights")
            assert mapped(daemon.workers()["a"]) == 3
        list(daemon.admin.unload(UnloadModel("b")))  # a failed model has nothing to lend
        assert daemon.status().pool.total_blocks == lent
        where.check_regions(daemon.process.pid, "pool", "pool", "weights")
        assert len(ask(daemon, "Once")) == TOKENS


@pytest.mark.usefixtures("two_devices")
def test_a_move_takes_back_what_is_lent_there_and_lends_what_it_leaves(where: Where, tmp_path: Path) -> None:
    """The target has memory for its pool and one model, which another has left to the pool."""
    two = models(where, tmp_path, {"a": where.first, "b": where.second})
    weights = (tmp_path / "a" / "model.safetensors").stat().st_size
    limit = where.pages(1 << 20) + where.pages(weights) * 3 // 2
    text = where.two_devices(("1M", "1M"), second=f'memory = "{limit}"\n')
    with where.live("[pool]\ngrow = true\n" + text + two, tmp_path) as daemon:
        own = 128  # head blocks of each pool
        alone = ask_on(daemon, "a", 64)
        assert blocks(daemon) == [own, own]
        list(daemon.admin.unload(UnloadModel("b")))
        lent = blocks(daemon)[1] - own
        assert blocks(daemon) == [own, own + lent]
        assert lent > 0
        assert list(daemon.admin.move(MoveModel("a", where.second)))[-1].stage == "moved"
        assert row(daemon, "a").device == where.second
        assert blocks(daemon) == [own + lent, own]
        assert ask_on(daemon, "a", 64) == alone
        where.check_regions(daemon.process.pid, "pool", "pool", "pool", "weights")
        with pytest.raises(MuxdError, match="not enough memory"):
            list(daemon.admin.load(LoadModel("b")))  # no room beside a; nothing is lent there
        assert blocks(daemon) == [own + lent, own]
        assert list(daemon.admin.load(LoadModel("b", device=where.first)))[-1].stage == "ready"
        assert blocks(daemon) == [own, own]
        assert whole(daemon)


def blocks(daemon: LiveDaemon) -> list[int]:
    """Head blocks there are, by device."""
    return [pool.total_blocks for pool in daemon.status().devices.values()]
