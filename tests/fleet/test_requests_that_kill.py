"""Real workers that die of one request, hang, or cannot be started: who is told, who goes on, who comes back.

A request kills by the test's hand: what the unit sends is watched, and the worker is killed (or stopped) with
the very command that has the request in it.
"""

import asyncio
import errno
import os
import signal
from pathlib import Path

import pytest
from support.daemon_here import played
from support.tiny import tiny_served

from muxd.config import Config, ModelConfig, PoolConfig, SchedulerConfig, ServerConfig, Split
from muxd.daemon import Daemon
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import ModelNotReady, RequestKillsWorker
from muxd.fleet.process import WorkerProcess
from muxd.fleet.state import State
from muxd.link.daemon_end import DaemonEnd
from muxd.messages import Decode, Prefill, Sampling, ToWorker

PROMPT = [5, 17, 99, 3, 64, 8, 8, 8]
POISON = 13  # the first token of what kills


def daemon(folder: Path, split: Split = "no", timeout: float = 10.0) -> Daemon:
    for seed, name in enumerate("ab"):
        tiny_served(folder / name, seed)
    config = Config(
        server=ServerConfig(device="cpu", port=0, socket=str(folder / "s"), shutdown_grace=0.1),
        pool=PoolConfig(bytes="8M"),
        scheduler=SchedulerConfig(split_phases=split, batch_timeout=timeout),
        model=[ModelConfig(name=name, path=str(folder / name), dtype="float32") for name in "ab"],
    )
    return Daemon(config)


def submit(
    daemon: Daemon, model: str, tokens: int, prompt: list[int] | None = None, **sampling: float
) -> TokenStream:
    said = Sampling(**{"temperature": 0.0, **sampling})  # type: ignore[arg-type]
    return daemon.submit(Request("r", model, prompt or PROMPT, tokens, said, frozenset()))


async def read(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.tokens]


class Killer:
    """Sends the worker ``number`` as often as its command has a sequence that begins with POISON."""

    def __init__(self, daemon: Daemon, monkeypatch: pytest.MonkeyPatch, number: signal.Signals):
        self.times = 0
        marked: set[int] = set()
        forward = DaemonEnd.send

        def send(link: DaemonEnd, worker: str, command: ToWorker) -> None:
            if not isinstance(command, Prefill | Decode):
                return forward(link, worker, command)
            seqs = command.seqs if isinstance(command, Decode) else [chunk.seq for chunk in command.chunks]
            if isinstance(command, Prefill):
                first = {chunk.seq: int.from_bytes((chunk.known or chunk.tokens)[:4], "little")
                         for chunk in command.chunks if chunk.first}  # fmt: skip
                marked.update(seq for seq, token in first.items() if token == POISON)
            if marked.intersection(seqs):
                self.times += 1
                for pid in daemon.entries[worker.rpartition("/")[0]].life.pids.values():
                    os.kill(pid, number)
            forward(link, worker, command)

        monkeypatch.setattr(DaemonEnd, "send", send)


@pytest.mark.parametrize("split", ["no", "yes"])
def test_a_request_that_kills_fails_by_its_name_and_all_others_get_the_tokens_they_would_have_had(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    muxd = daemon(tmp_path, split)
    killer = Killer(muxd, monkeypatch, signal.SIGKILL)
    warm = {"temperature": 0.9, "seed": 7, "top_p": 0.95, "repetition_penalty": 1.3, "min_tokens": 5}

    def some() -> list[TokenStream]:
        return [
            submit(muxd, "a", 60),
            submit(muxd, "a", 60, PROMPT[::-1], **warm),
            submit(muxd, "a", 60, PROMPT[::-1], **{**warm, "seed": 8}),
            submit(muxd, "b", 60),
        ]

    async def scene() -> None:
        undisturbed = await asyncio.gather(*map(read, some()))
        beside = muxd.entries["b"].life.pid
        running = some()
        firsts = [(await anext(aiter(stream))).tokens for stream in running]
        poison = submit(muxd, "a", 5, [POISON, *PROMPT])
        with pytest.raises(RequestKillsWorker, match="the request r was running when its worker was lost"):
            await read(poison)
        rest = await asyncio.gather(*map(read, running))
        assert [first + more for first, more in zip(firsts, rest, strict=True)] == undisturbed
        assert killer.times == 2
        assert muxd.entries["b"].life.pid == beside
        assert await read(submit(muxd, "a", 60)) == undisturbed[0]
        assert muxd.entries["a"].life._deaths == [], "what a request does is not counted against its model"
        assert muxd.observer.outcomes == {"served": 9, "failed": 1}
        for site in muxd.sites.values():
            site.arena.ledger.audit()
            assert site.arena.ledger.held_blocks == 0

    played(muxd, scene)
    assert "it is not tried again" in caplog.text


def test_a_worker_that_hangs_is_replaced_and_its_streams_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that a request makes hang: the second time it fails by its name."""
    muxd = daemon(tmp_path, timeout=0.5)  # one that only waits for a core is not taken to hang
    killer = Killer(muxd, monkeypatch, signal.SIGSTOP)

    async def scene() -> None:
        undisturbed = await asyncio.gather(*(read(submit(muxd, name, 60)) for name in "ab"))
        running = [submit(muxd, name, 60) for name in "ab"]
        firsts = [(await anext(aiter(stream))).tokens for stream in running]
        with pytest.raises(RequestKillsWorker, match="has not answered batch"):
            await read(submit(muxd, "a", 5, [POISON, *PROMPT]))
        rest = await asyncio.gather(*map(read, running))
        assert [first + more for first, more in zip(firsts, rest, strict=True)] == undisturbed
        assert killer.times == 2
        assert [event.kind for event in muxd.events.since(model="a")].count("worker hung") == 2

    played(muxd, scene)
    assert "a: its worker has not answered batch" in caplog.text


def test_a_model_that_fails_too_often_rests_and_comes_back_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    muxd = daemon(tmp_path)

    async def scene() -> None:
        entry, lost = muxd.entries["a"], asyncio.Event()
        entry.life._limits = entry.life._limits.__class__(first_delay=0.01, first_rest=0.5)
        monkeypatch.setattr(muxd.sites["cpu"].unit, "worker_ready", lambda model, workers: None)
        announced = muxd.sites["cpu"].unit.worker_lost

        def worker_lost(model: str, *args: object, **kwargs: object) -> None:
            announced(model, *args, **kwargs)  # type: ignore[arg-type]
            lost.set()

        monkeypatch.setattr(muxd.sites["cpu"].unit, "worker_lost", worker_lost)
        while entry.life.state is not State.RESTING:
            lost.clear()
            if entry.life.pid is not None:
                os.kill(entry.life.pid, signal.SIGKILL)
            await asyncio.wait([asyncio.create_task(lost.wait())], timeout=0.5)
        monkeypatch.undo()
        assert (entry.state, entry.retry_after) == ("failed", 0.5)
        with pytest.raises(
            ModelNotReady, match="a cannot be served: worker ended: killed by SIGKILL"
        ) as told:
            submit(muxd, "a", 5)
        assert told.value.retry_after == 0.5
        assert len(await read(submit(muxd, "b", 5))) == 5
        async for event in muxd.events.follow(model="a"):
            if event.kind == "worker ready" and entry.state == "ready":
                break
        assert len(await read(submit(muxd, "a", 5))) == 5

    played(muxd, scene)


def test_what_the_daemon_lacks_is_not_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptors are left for more tries than a model may fail: its stream goes on when some are."""
    muxd = daemon(tmp_path)

    async def scene() -> None:
        undisturbed = await read(submit(muxd, "a", 60))
        stream = submit(muxd, "a", 60)
        first = (await anext(aiter(stream))).tokens
        entry, spawn, tries = muxd.entries["a"], WorkerProcess.spawn, 0
        entry.life._limits = entry.life._limits.__class__(max_failures=3, first_delay=0.01, max_delay=0.01)

        async def starved(*args: object) -> WorkerProcess:
            nonlocal tries
            tries += 1
            if tries <= 6:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return await spawn(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(WorkerProcess, "spawn", starved)
        assert entry.life.pid is not None
        os.kill(entry.life.pid, signal.SIGKILL)
        assert first + await read(stream) == undisturbed
        assert tries == 7
        assert entry.life.restarts == 1

    played(muxd, scene)
    assert caplog.text.count("muxd lacks what a's next worker needs: Too many open files") == 6
