"""What a lane is told of its model depends on the device: how many sequences are decoded together."""

from contextlib import closing
from pathlib import Path

import pytest
from support.costs import model, table
from support.tiny import tiny_served

from muxd.config import ModelConfig, running
from muxd.device.base import Device
from muxd.device.cpu import Cpu
from muxd.device.cuda import Cuda
from muxd.fleet.accounts import lane_spec, open_account, setup
from muxd.fleet.catalog import Entry
from muxd.pool.arena import Arena
from muxd.sim.build import make_scheduler, plain_config
from muxd.worker.cuda_graphs import BUCKETS


def spec_of(device: Device, folder: Path, asked: int) -> int:
    """What the scheduler keeps to, and its workers are told."""
    entry = Entry(ModelConfig("m", str(folder), max_running=asked))
    entry.open()
    with closing(device), closing(Arena(device, 4 << 20, 8192)) as arena:
        open_account(entry, arena)
        found = lane_spec(entry, arena, 50, device).max_running
        assert setup(entry, arena, device, "").max_running == found
        return found


@pytest.mark.usefixtures("cuda_here")
def test_more_on_a_gpu_unless_it_is_configured(tmp_path: Path) -> None:
    folder = tiny_served(tmp_path / "m")
    assert [spec_of(Cpu(), folder, asked) for asked in (0, 7)] == [32, 7]
    assert [spec_of(Cuda(), folder, asked) for asked in (0, 7)] == [128, 7]


def test_on_a_gpu_as_many_as_graphs_are_recorded_for() -> None:
    assert running(ModelConfig("m", "m"), gpu=True) == BUCKETS[-1]


@pytest.mark.parametrize(("gpu", "expected"), [(False, 32), (True, 128)])
def test_the_simulator_does_as_the_daemon(gpu: bool, expected: int) -> None:
    scheduler = make_scheduler(plain_config(["a"]), table(gpu=gpu, a=model()))
    assert scheduler.lanes["a"].spec.max_running == expected
    assert scheduler.lanes["a"].spec.split == gpu
