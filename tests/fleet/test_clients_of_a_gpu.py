"""A GPU takes so many processes and no more. A model has one for both phases where a batch chooses its SMs;
where a process has its share for life it has two, unless there are many models. The model whose workers would
be too many is refused by name."""

from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace
from support.both_ways import site_of
from support.tiny import tiny_served

from muxd.config import (
    MPS_CLIENTS,
    MPS_SPARED,
    Config,
    DeviceConfig,
    ModelConfig,
    Phasing,
    SchedulerConfig,
    Split,
    phasing,
)
from muxd.device.cpu import Cpu
from muxd.errors import OutOfMemory
from muxd.fleet.catalog import Entry
from muxd.pool.arena import Arena

PARTS = (25, 50, 75, 100)
CAPS = tuple(range(1, 101))


def config(models: int, devices: int = 0, split: Split = "auto") -> Config:
    return Config(
        scheduler=SchedulerConfig(split_phases=split),
        device=[DeviceConfig(f"cuda:{index}") for index in range(devices)],
        model=[ModelConfig(f"m{index}", "/nowhere") for index in range(models)],
    )


def test_the_two_phases_share_a_process_where_they_can_and_many_models_have_no_second_one() -> None:
    def found(
        config: Config, rungs: tuple[int, ...] = PARTS, *, gpu: bool = True, caps: bool = False
    ) -> Phasing:
        return phasing(config, rungs, gpu=gpu, caps=caps)

    assert found(config(22)) == found(config(45)) == "beside"
    assert found(config(2), (100,)) == found(config(2), gpu=False) == "in turn"
    assert found(config(22), CAPS, caps=True) == "apart"
    assert found(config(23), CAPS, caps=True) == "in turn"
    assert found(config(30, devices=2), CAPS, caps=True) == "apart"
    for rungs, gpu, caps in ((PARTS, True, False), (CAPS, True, True), ((50, 100), False, False)):
        assert found(config(30, split="yes"), rungs, gpu=gpu, caps=caps) == "apart"
        assert found(config(2, split="no"), rungs, gpu=gpu, caps=caps) == "in turn"


@pytest.mark.parametrize(
    ("how", "most", "advice"),
    [
        ("apart", MPS_CLIENTS // 2, "split_phases"),
        ("beside", MPS_CLIENTS, "here$"),
        ("in turn", MPS_CLIENTS, "here$"),
    ],
)
def test_one_too_many_is_refused(tmp_path: Path, how: Phasing, most: int, advice: str) -> None:
    entry = Entry(ModelConfig("m", str(tiny_served(tmp_path / "m")), dtype="float32"))
    entry.open()
    with closing(Cpu()) as device, closing(Arena(device, 1 << 20, 8192)) as arena:
        site = site_of(Config(model=[entry.config]), device, arena, [entry])
        site.place = replace(site.place, gpu=True, rungs=PARTS, phasing=how)
        others = {f"m{index}": cast(Any, None) for index in range(most)}
        site.supervisors.update(others)
        with pytest.raises(OutOfMemory, match=rf"cpu takes 48 processes \(MPS\), .*{advice}"):
            site.start(entry, lambda *_: None)
        assert site.supervisors == others
        assert site.places == (MPS_CLIENTS - MPS_SPARED) // (2 if how == "apart" else 1)
        site.place = replace(site.place, rungs=(100,))
        assert site.places is None
