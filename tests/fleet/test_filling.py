"""Weights are read by a process of their own: what it reads, what it says, and that nothing of it is left."""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.tiny import tiny_served

from muxd.device.base import HostWriter
from muxd.device.cpu import CpuRegion
from muxd.errors import ModelFolderError, MuxdError
from muxd.fleet import filling
from muxd.fleet.filler import packed, unpacked
from muxd.models.spec import read_spec
from muxd.models.weights import WeightPlan, fill, plan

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


@pytest.fixture
def layout(tmp_path: Path) -> WeightPlan:
    folder = tiny_served(tmp_path / "model", 1)
    return plan(folder, read_spec(folder), "float32")


@pytest.fixture
def region(layout: WeightPlan) -> Iterator[CpuRegion]:
    made = CpuRegion(layout.bytes, "weights")
    yield made
    made.close()


@dataclass
class Started:
    """``process`` is there when ``event`` is set."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    noted, spawn = Started(), filling._spawn

    async def note(sock: int, lifeline: int) -> asyncio.subprocess.Process:
        noted.process = await spawn(sock, lifeline)
        noted.event.set()
        return noted.process

    monkeypatch.setattr(filling, "_spawn", note)
    return noted


def beside_streams() -> bool:
    return True


def run(layout: WeightPlan, region: CpuRegion, progress: Callable[[int], None] = lambda done: None) -> None:
    asyncio.run(filling.filled_piece(layout, region, progress, beside_streams))


def test_it_fills_what_the_reading_itself_fills(layout: WeightPlan, region: CpuRegion) -> None:
    seen: list[int] = []
    run(layout, region, seen.append)
    here = np.zeros(layout.bytes, dtype=np.uint8)
    fill(layout, HostWriter(here))
    assert np.array_equal(region.array(), here)
    assert seen == sorted(seen)
    assert seen[-1] == sum(4 * int(np.prod(entry.shape)) for entry in layout.tensors)


def test_a_plan_crosses_as_it_is(layout: WeightPlan) -> None:
    assert unpacked(packed(layout)) == layout


def test_a_file_that_has_changed_is_named(layout: WeightPlan, region: CpuRegion) -> None:
    (file,) = (one for one in layout.seals if one.suffix == ".safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is truncated"):
        run(layout, region)


@pytest.mark.parametrize("others", [True, False])
def test_the_process_gives_way_to_streams_before_it_imports_anything_and_else_to_nobody(
    layout: WeightPlan, region: CpuRegion, started: Started, others: bool
) -> None:
    own, found = os.getpriority(os.PRIO_PROCESS, 0), list[int]()

    async def scene() -> None:
        reading = asyncio.create_task(filling.filled_piece(layout, region, lambda done: None, lambda: others))
        await started.event.wait()
        assert started.process is not None
        found.append(os.getpriority(os.PRIO_PROCESS, started.process.pid))
        await reading

    asyncio.run(scene())
    assert found == [min(19, own + 10) if others else own]


def test_it_gives_way_to_a_stream_that_begins_while_it_reads(
    layout: WeightPlan, region: CpuRegion, started: Started
) -> None:
    own, found, begun = os.getpriority(os.PRIO_PROCESS, 0), list[int](), list[int]()

    def looked() -> bool:
        begun.append(1)
        return len(begun) > 1

    def progress(done: int) -> None:
        assert started.process is not None
        found.append(os.getpriority(os.PRIO_PROCESS, started.process.pid))

    asyncio.run(filling.filled_piece(layout, region, progress, looked))
    assert found[0] == min(19, own + 10)
    assert len(begun) == 2  # asked no more than that


def test_a_process_that_is_lost_is_told(layout: WeightPlan, region: CpuRegion, started: Started) -> None:
    async def scene() -> None:
        reading = asyncio.create_task(filling.filled_piece(layout, region, lambda done: None, beside_streams))
        await started.event.wait()
        assert started.process is not None
        started.process.kill()
        await reading

    with pytest.raises(MuxdError, match=r"lost: it .*SIGKILL"):
        asyncio.run(scene())


def test_given_up_it_leaves_no_process(layout: WeightPlan, region: CpuRegion, started: Started) -> None:
    async def scene() -> None:
        reading = asyncio.create_task(filling.filled_piece(layout, region, lambda done: None, beside_streams))
        await started.event.wait()
        reading.cancel()
        await asyncio.wait([reading])

    asyncio.run(scene())
    assert started.process is not None
    assert started.process.returncode is not None
