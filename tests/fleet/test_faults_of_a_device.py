"""One worker's fault reaches its whole device: who is replaced, told and served again. Real workers, on a CPU
that claims to be such a device; and what is said of a worker that does not share as asked."""

import os
import signal
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from support.daemon_here import played
from support.tiny import tiny_served

import muxd.daemon
from muxd.config import Config, ModelConfig, PoolConfig, SchedulerConfig, ServerConfig, Split
from muxd.daemon import Daemon
from muxd.device.base import ClientView
from muxd.device.cpu import Cpu
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.messages import Sampling


class SharedFate(Cpu):
    """``fatal``: the next worker's end is a fault that reaches all others."""

    def __init__(self) -> None:
        super().__init__(2)
        self.fatal = False
        self.alive: set[int] = (
            set()
        )  # workers that a fault has reached; none may be there at a new one's start
        self.ended: list[int] = []

    def worker_env(self, cap: int = 0) -> dict[str, str]:
        there = {pid for pid in self.alive if os.path.exists(f"/proc/{pid}")}
        assert not there, f"a worker was started beside {there}, which the fault had reached"
        return super().worker_env(cap)

    def attached(self, pid: int, view: ClientView, cap: int = 0) -> str:
        return f"process {pid} runs without MPS"

    def end_work(self, pid: int) -> None:
        self.ended.append(pid)

    def faulted(self) -> bool:
        fatal, self.fatal = self.fatal, False
        return fatal


def config(folder: Path, split: Split) -> Config:
    for seed, name in enumerate("abc"):
        tiny_served(folder / name, seed)
    models = [
        ModelConfig(name=name, path=str(folder / name), dtype="float32", max_running=1) for name in "abc"
    ]
    server = ServerConfig(port=0, socket=str(folder / "s"), shutdown_grace=0.1)
    return Config(
        server=server,
        pool=PoolConfig(bytes="8M"),
        scheduler=SchedulerConfig(split_phases=split),
        model=models,
    )


def submit(daemon: Daemon, model: str, tokens: int) -> TokenStream:
    return daemon.submit(Request("r", model, [5] * 8, tokens, Sampling(temperature=0.0), frozenset()))


async def read(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.tokens]


@pytest.mark.parametrize("split", ["no", "yes"])
def test_every_worker_of_the_device_is_replaced(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = SharedFate()
    monkeypatch.setattr(muxd.daemon, "open_device", lambda *_, **__: device)
    daemon = Daemon(config(tmp_path, split))

    async def scene() -> None:
        before = {name: dict(daemon.entries[name].life.pids) for name in "abc"}
        device.alive = {pid for pids in before.values() for pid in pids.values()}
        running = submit(daemon, "b", 400)
        first = (await anext(aiter(running))).tokens
        waiting = submit(daemon, "b", 5)  # max_running is 1
        device.fatal = True
        os.kill(next(iter(before["a"].values())), signal.SIGKILL)
        assert len(first + await read(running)) == 400
        assert len(await read(waiting)) == 5
        assert [len(await read(submit(daemon, name, 3))) for name in "abc"] == [3, 3, 3]
        for name in "abc":
            after = daemon.entries[name].life
            assert (set(after.pids), after.restarts) == (set(before[name]), 1)
            assert not set(after.pids.values()) & device.alive
        assert device.alive - set(before["a"].values()) <= set(device.ended), (
            "ended on the device before the kill"
        )
        said = generate_latest(daemon.registry).decode()
        assert "muxd_device_faults_total 1.0" in said
        assert [f'muxd_worker_restarts_total{{model="{name}"}} 1.0' in said for name in "abc"] == [True] * 3
        next(iter(daemon.sites.values())).arena.ledger.audit()

    played(daemon, scene)
    assert "the fault of a worker has reached all of cpu" in caplog.text
    assert "a does not share cpu as asked: process" in caplog.text


def test_an_ordinary_end_spares_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SharedFate()
    monkeypatch.setattr(muxd.daemon, "open_device", lambda *_, **__: device)
    daemon = Daemon(config(tmp_path, "no"))

    async def scene() -> None:
        before = {name: daemon.entries[name].life.pid for name in "abc"}
        assert before["a"]
        os.kill(before["a"], signal.SIGKILL)
        assert len(await read(submit(daemon, "a", 3))) == 3
        assert {name: daemon.entries[name].life.pid for name in "bc"} == {n: before[n] for n in "bc"}
        assert "muxd_device_faults_total 0.0" in generate_latest(daemon.registry).decode()

    played(daemon, scene)
