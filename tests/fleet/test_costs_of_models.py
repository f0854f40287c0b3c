"""What a daemon with several devices reckons its models to cost."""

from pathlib import Path

import msgspec
import pytest
from support.costs import SHAPE, model
from support.tiny import tiny_served

from muxd.config import Config, DeviceConfig, ModelConfig, PlacementConfig
from muxd.cost.profile import FORMAT, Device, Profile, save
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


def test_a_profile_knows_models_by_folder_and_types(folder: Path, tmp_path: Path) -> None:
    """Under whatever name they were measured; else a daemon would spread its models by size only."""
    wide = msgspec.structs.replace(model(decode=0.04), shape=msgspec.structs.replace(SHAPE, dtype="float32"))
    measured = {"one": model(decode=0.02), "other": wide}
    known = {name: msgspec.structs.replace(one, folder="tiny") for name, one in measured.items()}
    save(tmp_path / "cost.json", Profile(FORMAT, Device("hand", 2, [50, 100]), known))
    config = Config(
        device=[DeviceConfig(name) for name in DEVICES],
        placement=PlacementConfig(profile=str(tmp_path / "cost.json")),
    )
    appraiser = planning(config).appraiser(entries(folder, ["bfloat16", "float32"]))
    seconds = [appraiser.load(1, (i,), (100,)).decodes[0] for i in range(2)]
    assert seconds == pytest.approx([0.02, 0.04], rel=0.01)
