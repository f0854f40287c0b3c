"""What a lane is told of its model depends on the device: how many sequences are decoded together."""

from contextlib import closing
from pathlib import Path

import pytest
from support.tiny import tiny_served

from muxd.config import Config, ModelConfig, running
from muxd.device.base import Device
from muxd.device.cpu import Cpu
from muxd.device.cuda import Cuda
from muxd.fleet.accounts import opening_of, place_of, setup
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import load_of
from muxd.placement.memory import Budget, scratch
from muxd.pool.arena import Arena
from muxd.worker.cuda_graphs import BUCKETS


def spec_of(device: Device, folder: Path, asked: int) -> int:
    """What the scheduler keeps to, and its workers are told."""
    entry = Entry(ModelConfig("m", str(folder), max_running=asked))
    entry.open()
    with closing(device), closing(Arena(device, 4 << 20, 8192)) as arena:
        where = place_of(device, arena, Config())
        spec, terms = opening_of(entry, where, 50)
        told = setup(entry, arena, device, where, "")
        assert (told.max_running, told.max_context, told.max_rows) == (
            spec.max_running,
            spec.max_context,
            terms.max_rows,
        )
        return told.max_running


@pytest.mark.usefixtures("cuda_here")
def test_more_on_a_gpu_unless_it_is_configured(tmp_path: Path) -> None:
    folder = tiny_served(tmp_path / "m")
    assert [spec_of(Cpu(), folder, asked) for asked in (0, 7)] == [32, 7]
    assert [spec_of(Cuda(), folder, asked) for asked in (0, 7)] == [128, 7]


@pytest.mark.usefixtures("cuda_here")
def test_workers_on_a_gpu_are_held_to_what_is_set_aside_for_them(tmp_path: Path) -> None:
    entry = Entry(ModelConfig("m", str(tiny_served(tmp_path / "m")), max_running=9))
    entry.open()
    budget = Budget(max_running=500)
    for device in (Cuda(), Cpu()):
        with closing(device), closing(Arena(device, 4 << 20, 8192)) as arena:
            where = place_of(device, arena, Config())
            told = setup(entry, arena, device, where, "", budget).scratch
        own = Budget(max_running=9)
        held = {kind: scratch(load_of(entry), 1, own, kind) for kind in ("both", "prefill", "decode")}
        assert told == (held if device.kind != "CPU" else {})


def test_on_a_gpu_as_many_as_graphs_are_recorded_for() -> None:
    assert running(ModelConfig("m", "m"), gpu=True) == BUCKETS[-1]
