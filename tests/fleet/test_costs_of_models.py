"""What a daemon with several devices reckons its models to cost."""

from pathlib import Path

import pytest
from support.tiny import tiny_served

from muxd.config import Config, DeviceConfig, ModelConfig
from muxd.device import host_speed
from muxd.device.cpu import Cpu
from muxd.fleet.catalog import Entry
from muxd.fleet.planning import Planning
from muxd.messages import Dtype

DEVICES = ("cpu:0", "cpu:1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("models") / "tiny")


def entries(folder: Path, dtypes: list[Dtype]) -> list[Entry]:
    made = [Entry(ModelConfig(dtype, str(folder), dtype=dtype, rate=1e-3)) for dtype in dtypes]
    for one in made:
        one.open()
    return made


def planning(config: Config) -> Planning:
    return Planning(config, {name: Cpu() for name in DEVICES}, dict.fromkeys(DEVICES, 64 << 20))


def test_weights_cost_the_bytes_of_their_own_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reading them is all that counts, four bytes a number take twice as long as two."""
    monkeypatch.setattr(host_speed, "bandwidth", lambda: 1e6)
    monkeypatch.setattr(host_speed, "flops", lambda: 1e15)
    models = entries(folder, ["bfloat16", "float16", "float32"])
    appraiser = planning(Config(device=[DeviceConfig(name) for name in DEVICES])).appraiser(models)
    seconds = [appraiser.load(1, (i,), (100,)).decodes[0] for i in range(3)]
    assert seconds[0] == seconds[1]
    assert seconds[2] == pytest.approx(2 * seconds[0], rel=0.02)
