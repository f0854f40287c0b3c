"""A GPU takes so many processes and no more: with many models each has one instead of two, and the model
whose workers would be too many is refused by name."""

from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace
from support.both_ways import site_of
from support.tiny import tiny_served

from muxd.config import MPS_CLIENTS, Config, DeviceConfig, ModelConfig, SchedulerConfig, Split, splits
from muxd.device.cpu import Cpu
from muxd.errors import OutOfMemory
from muxd.fleet.catalog import Entry
from muxd.pool.arena import Arena

PARTS = (25, 50, 75, 100)


def config(models: int, devices: int = 0, split: Split = "auto") -> Config:
    return Config(
        scheduler=SchedulerConfig(split_phases=split),
        device=[DeviceConfig(f"cuda:{index}") for index in range(devices)],
        model=[ModelConfig(f"m{index}", "/nowhere") for index in range(models)],
    )


def test_many_models_have_one_process_each() -> None:
    assert splits(config(22), PARTS, gpu=True)
    assert not splits(config(23), PARTS, gpu=True)
    assert splits(config(30, devices=2), PARTS, gpu=True)
    assert splits(config(30, split="yes"), PARTS, gpu=True)
    assert not splits(config(2), (100,), gpu=True)
    assert not splits(config(2), PARTS, gpu=False)


@pytest.mark.parametrize(("split", "most"), [(True, MPS_CLIENTS // 2), (False, MPS_CLIENTS)])
def test_one_too_many_is_refused(tmp_path: Path, split: bool, most: int) -> None:
    entry = Entry(ModelConfig("m", str(tiny_served(tmp_path / "m")), dtype="float32"))
    entry.open()
    with closing(Cpu()) as device, closing(Arena(device, 1 << 20, 8192)) as arena:
        site = site_of(Config(model=[entry.config]), device, arena, [entry])
        site.place = replace(site.place, gpu=True, rungs=PARTS, split=split)
        others = {f"m{index}": cast(Any, None) for index in range(most)}
        site.supervisors.update(others)
        with pytest.raises(OutOfMemory, match=r"cpu takes 48 processes \(MPS\), .*scheduler\.split_phases"):
            site.start(entry, lambda *_: None)
        assert site.supervisors == others
