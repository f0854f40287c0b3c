"""What a load computes is behind everybody where other models have streams, and gives way to nobody where
none has: what else the machine does would keep it waiting for minutes. Processes are played."""

import os
import threading
from pathlib import Path
from typing import cast

import pytest
from support.courses import Asked, Course, asked, awake, fleet_of, opened_in
from support.tiny import tiny_served

from muxd.api.texts import handle
from muxd.config import ModelConfig
from muxd.fleet.catalog import Entry
from muxd.text.library import Library
from muxd.text.pool import TextPool
from muxd.text.work import Check, Result, Source, Stage


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


class Texts:
    """A text process, here: how far behind it was when it read the tokenizer."""

    nice = 0

    async def check(self, source: Source, size: int, *, aside: bool) -> Result:
        def stage(at: Stage) -> None:
            self.nice = nice()

        return handle(Library(), Check(source, size, aside), stage)


@pytest.mark.parametrize("streams", [False, True])
def test_a_load_gives_way_to_streams_and_to_nobody_else(tmp_path: Path, streams: bool) -> None:
    async def scene(played: Course) -> None:
        fleet, texts = played.fleet, Texts()
        fleet.roster.texts = cast(TextPool, texts)
        assert awake(played) == set("abcd")
        assert not any(one.setup.aside for one in fleet.processes.values()), "nobody streamed yet"
        await fleet.roster.sleep("b", now=True).finished()
        stream = Asked(fleet, "a", 400) if streams else None
        assert (await asked(played, "b")).outcome == "served"
        (worker,) = fleet.living("b")
        assert worker.setup.aside == streams
        await fleet.roster.read(Entry(ModelConfig("e", str(tiny_served(tmp_path / "e", 9)))))
        assert texts.nice == (min(19, nice() + 10) if streams else nice())
        if stream is not None:
            assert not stream.outcome, "it was over before"
            stream.cancel()

    with fleet_of(opened_in(tmp_path), machine=8, host="0", limited=True) as play:
        play(scene)
