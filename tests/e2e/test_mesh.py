"""Models cut over the devices of a mesh, beside one on a single device in the same pool, over HTTP."""

import asyncio
import os
import random
import signal
from pathlib import Path

import aiohttp
import pytest
from support.completing import complete
from support.live import LiveDaemon, demo_config, demo_folder, live
from support.reference import PROMPTS, greedy
from support.two_units import Stream, ask, folder, row, whole
from support.where import Where, on

from muxd.admin.schemas import LoadModel, MoveModel, ProcessInfo, SleepModel, UnloadModel
from muxd.errors import MuxdError
from muxd.text.tokenizer import Tokenizer

TOKENS = 150

on_the_cpu = on("cpu")
pytestmark = pytest.mark.usefixtures("two_devices")


def mesh_of(where: Where) -> str:
    return f"{where.first}+{where.second}"


def config(where: Where, root: Path, tp: int = 2, extra: str = "") -> str:
    """``a`` is cut, ``b`` is not."""
    tables = ""
    for seed, (name, ranks) in enumerate({"a": tp, "b": 1}.items()):
        path = folder(root / name, seed, where)
        tables += f'[[model]]\nname = "{name}"\npath = "{path}"\ndtype = "float32"\ntp = {ranks}\n'
    cores = "" if where.gpu else "cores = [0, 1]\n"
    mesh = f'[[device]]\nname = "{mesh_of(where)}"\n{cores}' if tp > 1 else ""
    return f'[pool]\nbytes = "16M"\n{extra}{mesh}{tables}'


def workers(daemon: LiveDaemon) -> dict[tuple[str, int], ProcessInfo]:
    """By model and rank."""
    return {(one.model, one.rank): one for one in daemon.admin.ps() if one.role == "worker"}


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def alone(where: Where, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What each answers where nothing is cut."""
    root = tmp_path_factory.mktemp("alone")
    with where.live(config(where, root, tp=1), root) as daemon:
        return {model: ask(daemon, model, TOKENS) for model in "ab"}


def together(daemon: LiveDaemon, alone: dict[str, list[int]], models: str) -> None:
    streams = [Stream(daemon, model, TOKENS) for model in models]
    for stream, model in zip(streams, models, strict=True):
        assert stream.join().tokens == alone[model], daemon.log


@on("cpu", "stand-in")
def test_it_answers_as_on_one_device_and_comes_and_goes(
    where: Where, tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    with where.live(config(where, tmp_path), tmp_path) as daemon:
        together(daemon, alone, "abab")
        found = workers(daemon)
        assert found.keys() >= {("a", 0), ("a", 1), ("b", 0)}
        assert [found["a", rank].device for rank in (0, 1)] == [where.first, where.second]
        for one in found.values():
            assert where.gpu or os.sched_getaffinity(one.pid) == {int(one.device[-1])}
        where.check_regions(daemon.process.pid, "pool", "pool", "weights", "weights", "weights")
        assert row(daemon, "a").device == row(daemon, "b").device == mesh_of(where)
        assert daemon.status().pool.bytes == 16 << 20
        assert list(daemon.status().devices) == [mesh_of(where)]
        with pytest.raises(MuxdError, match=r"is on .* already"):
            list(daemon.admin.move(MoveModel("a", mesh_of(where))))
        list(daemon.admin.unload(UnloadModel("a")))
        assert {model for model, _ in workers(daemon)} == {"b"}
        assert not alive(found["a", 1].pid)
        where.check_regions(daemon.process.pid, "pool", "pool", "weights")
        assert [step.stage for step in daemon.admin.load(LoadModel("a"))][-1] == "ready"
        assert [step.stage for step in daemon.admin.sleep(SleepModel("a"))][-1] == "asleep"
        assert {model for model, _ in workers(daemon)} == {"b"}
        together(daemon, alone, "ab")  # who is asked for wakes
        assert whole(daemon)


def reload(daemon: LiveDaemon, text: str) -> None:
    (daemon.folder / "muxd.toml").write_text(text)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_ready()


@on_the_cpu
def test_a_reload_changes_over_how_many_devices_a_model_is_cut(
    where: Where, tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    """From two to one and back, while it streams: loaded anew, and the stream ends as it would have."""
    text = config(where, tmp_path)
    with live(text, tmp_path) as daemon:
        for changed, ranks in ((text.replace("tp = 2", "tp = 1"), 1), (text, 2)):
            stream = Stream(daemon, "a", TOKENS)
            stream.reach(3)
            reload(daemon, changed)
            assert stream.join().tokens == alone["a"], daemon.log
            assert row(daemon, "a").config.tp == ranks
            assert [rank for model, rank in sorted(workers(daemon)) if model == "a"] == list(range(ranks))
            last = Stream(daemon, "a", TOKENS).join()
            assert last.tokens == alone["a"]
            told = daemon.admin.why(last.id)[0].cut_over
            assert told == ([where.first, where.second] if ranks == 2 else [])
        assert whole(daemon)


def disturb(
    daemon: LiveDaemon, alone: dict[str, list[int]], rank: int, number: signal.Signals, after: int
) -> None:
    """All streams go on, and the other model's worker is the same."""
    before = workers(daemon)
    streams = [Stream(daemon, model, TOKENS) for model in "aab"]
    streams[0].reach(after)
    os.kill(before["a", rank].pid, number)
    for stream, model in zip(streams, "aab", strict=True):
        assert stream.join().tokens == alone[model], daemon.log
    now = workers(daemon)
    assert now["b", 0].pid == before["b", 0].pid
    assert not any(alive(before["a", old].pid) for old in (0, 1))
    assert now["a", 0].restarts == before["a", 0].restarts + 1
    assert whole(daemon)


HASTY = "[scheduler]\nbatch_timeout = 0.4\n"


@on_the_cpu
def test_a_rank_that_is_lost_is_replaced_with_the_others_and_streams_go_on(
    where: Where, tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    with live(config(where, tmp_path, extra=HASTY), tmp_path) as daemon:
        disturb(daemon, alone, 1, signal.SIGKILL, 1)
        disturb(daemon, alone, 0, signal.SIGSTOP, 1)


@pytest.mark.slow
@on_the_cpu
@pytest.mark.parametrize("seed", [1, 2])
def test_ranks_are_lost_at_any_moment(
    where: Where, tmp_path: Path, alone: dict[str, list[int]], seed: int
) -> None:
    draw = random.Random(seed)
    with live(config(where, tmp_path, extra=HASTY), tmp_path) as daemon:
        for _ in range(4):  # a fifth within two minutes, and the model would rest
            number = draw.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
            disturb(daemon, alone, draw.randrange(2), number, draw.randrange(1, 100))


async def all_at_once(url: str, asked: list[tuple[str, list[int]]]) -> list[list[int]]:
    async with aiohttp.ClientSession(url) as session:
        return list(await asyncio.gather(*(complete(session, *one, 8) for one in asked)))


@pytest.mark.slow
@pytest.mark.demo
@on_the_cpu
def test_the_demo_models_answer_as_transformers_does(where: Where, tmp_path: Path) -> None:
    """Nine heads over two devices, and one KV head; beside a model that is not cut."""
    models = demo_config("smol", "gemma", "smol-one", dtype="float32", pool="256M")
    tables = models.replace("[[model]]", "[[model]]\ntp = 2", 2)
    mesh = f'[[device]]\nname = "{mesh_of(where)}"\ncores = [0, 1]\n'
    with live(tables.replace("[[model]]", f"{mesh}[[model]]", 1), tmp_path) as daemon:
        asked, expected = [], []
        for name in ("smol", "gemma", "smol-one"):
            path = demo_folder(name.partition("-")[0])
            tokenizer = Tokenizer.load(path)
            asked += [(name, tokenizer.encode(text)) for text in PROMPTS[1:2]]
        found = asyncio.run(all_at_once(daemon.url, asked))
        for (name, prompt), answer in zip(asked, found, strict=True):
            expected.append(greedy(demo_folder(name.partition("-")[0]), prompt, answer))
        assert found == expected
        assert {row(daemon, name).config.tp for name in ("smol", "gemma")} == {2}
        assert whole(daemon)
