"""Tests that never end by themselves: ``test_interrupted_suite`` gives them to a pytest of its own."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from muxd.daemon import Daemon
from support.in_process import played
from support.live import LiveDaemon
from support.two_units import Stream, models
from support.where import Where

TOLD = "MUXD_TEST_TOLD"  # names a folder: "begun" appears there, then "finalised"


def tell(word: str) -> None:
    (Path(os.environ[TOLD]) / word).touch()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    root = tmp_path_factory.mktemp("interrupted")
    cpu = Where("cpu", {"MUXD_DEVICE": "cpu"})
    config = '[server]\nshutdown_grace = 100.0\n[pool]\nbytes = "16M"\n'
    with cpu.live(config + models(cpu, root, {"a": ""}, positions=16384), root) as daemon:
        yield daemon


@pytest.fixture
def finaliser() -> Iterator[None]:
    yield
    tell("finalised")


@pytest.mark.usefixtures("finaliser")
def test_daemon(daemon: LiveDaemon) -> None:
    stream = Stream(daemon, "a", 12_000)
    assert stream.first.wait(60)
    tell("begun")
    threading.Event().wait()


@pytest.mark.usefixtures("finaliser")
def test_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(daemon: Daemon, session: aiohttp.ClientSession, machine: list[int]) -> None:
        tell("begun")
        await asyncio.Event().wait()

    played(Where("cpu", {}), tmp_path, monkeypatch, scene)
