"""How large a pool is: a size, a part of the device, or what the models leave of a GPU (the stand-in)."""

from pathlib import Path

import msgspec
import pytest
from support.tiny import tiny_served

from muxd.config import Config, DeviceConfig, ModelConfig, PoolConfig, SchedulerConfig
from muxd.device.base import Device
from muxd.device.cpu import Cpu
from muxd.device.cuda import WORKSPACE_BYTES, Cuda
from muxd.device.green import KEPT, PROMPT_MASKS
from muxd.errors import ConfigError
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import load_of
from muxd.fleet.pool_sizes import pool_sizes, workers_budget
from muxd.placement.memory import Budget, fixed

GIB = 1 << 30
# Models take turns on the whole of a GPU: its stream, that of its recordings, and one set of graphs.
WORKERS = Budget(streams=2, sets=1, prompt_sets=1, tables=24 * GIB // 2048, prefill_tokens=256, max_running=1)


def entries(root: Path, **pins: str) -> list[Entry]:
    found = []
    for name, device in pins.items():
        entry = Entry(ModelConfig(name, str(tiny_served(root / name)), device=device))
        entry.open()
        found.append(entry)
    return found


def config(pool: str = "auto", *devices: str, memory: str = "") -> Config:
    return Config(
        pool=PoolConfig(bytes=pool),
        scheduler=SchedulerConfig(prefill_tokens=256),
        device=[DeviceConfig(name, memory=memory) for name in devices],
    )


@pytest.fixture
def gpus(cuda_here: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Device]:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(24 * GIB))
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "2")
    return {f"cuda:{index}": Cuda(index) for index in range(2)}


def test_on_the_cpu_it_is_modest_and_a_part_is_of_what_is_free() -> None:
    assert pool_sizes(config(), {"cpu": Cpu()}, []) == {"cpu": GIB}
    assert pool_sizes(config("25%"), {"cpu": Cpu(limit=8 * GIB)}, []) == {"cpu": 2 * GIB}
    assert pool_sizes(config("3M"), {"cpu": Cpu()}, []) == {"cpu": 3 << 20}


def test_on_a_gpu_it_is_what_models_and_workers_leave(gpus: dict[str, Device], tmp_path: Path) -> None:
    one = {"cuda:0": gpus["cuda:0"]}
    found = entries(tmp_path, a="", b="")
    held = sum(fixed(load_of(entry), 1, WORKERS) for entry in found)
    assert held > 2 * Budget().context
    assert pool_sizes(config(), one, found) == {"cuda:0": int(0.95 * 24 * GIB) - held}
    assert pool_sizes(config("50%"), one, found) == {"cuda:0": 12 * GIB}


def test_a_gpu_in_parts_has_streams_and_graphs_for_them(gpus: dict[str, Device]) -> None:
    """One process a model, and what each stream and each set of graphs costs, by name."""

    class Parted:
        kind, memory, rungs, parts = "NVIDIA H200", 24 * GIB, (25, 50, 75, 100), 4

    few = ModelConfig("a", "a", max_running=8)
    asked = msgspec.structs.replace(config(), model=[few, ModelConfig("b", "b")])
    found = workers_budget(asked, Parted())
    assert (found.workers, found.streams, found.sets, found.max_running) == (1, 2 + 14, 1 + KEPT, 128)
    assert found.prompt_sets == 1 + PROMPT_MASKS
    assert found.workspace == WORKSPACE_BYTES
    pairs = msgspec.structs.replace(asked, scheduler=SchedulerConfig(split_phases="yes"))
    assert workers_budget(pairs, Parted()).workers == 2
    assert workers_budget(asked, gpus["cuda:0"]).streams == 2


def test_of_several_each_has_room_for_one_that_moves(gpus: dict[str, Device], tmp_path: Path) -> None:
    found = entries(tmp_path, a="", b="cuda:1")
    each = fixed(load_of(found[0]), 1, WORKERS)
    whole = int(0.95 * 24 * GIB)
    sizes = pool_sizes(config("auto", *gpus), gpus, found)
    free = -(-each // 2) + each  # a is at one of them and may come to the other
    assert sizes == {"cuda:0": whole - free, "cuda:1": whole - free - each}


def test_what_a_device_is_allowed_is_for_pool_and_weights(gpus: dict[str, Device], tmp_path: Path) -> None:
    limited: dict[str, Device] = {"cuda:0": Cuda(0, limit=GIB)}
    (entry,) = entries(tmp_path, a="cuda:0")
    left = pool_sizes(config("auto", "cuda:0", memory="1G"), limited, [entry])["cuda:0"]
    assert entry.opened is not None
    assert 0 < GIB - left - entry.opened.plan.bytes < 1 << 20


def test_where_nothing_is_left_the_setting_is_named(
    gpus: dict[str, Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(GIB // 2))
    with pytest.raises(ConfigError, match=r"pool.bytes: nothing is left for K and V of 0.5 GB on cuda:0"):
        pool_sizes(config(), {"cuda:0": gpus["cuda:0"]}, entries(tmp_path, a=""))
    with pytest.raises(ConfigError, match=r"pool.bytes = 'plenty' is not a size; write .* \"25%\""):
        pool_sizes(config("plenty"), {"cuda:0": gpus["cuda:0"]}, [])


def test_where_not_all_fit_some_sleep_and_the_pool_has_its_part(
    cuda_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = entries(tmp_path, a="", b="", c="", d="")
    each = max(fixed(load_of(entry), 1, WORKERS) for entry in found)

    def pool(memory: int, *always: str) -> int:
        monkeypatch.setenv("FAKE_CUDA_MEMORY", str(memory))
        for entry in found:
            resident = "always" if entry.name in always else "demand"
            entry.config = msgspec.structs.replace(entry.config, resident=resident)
        return pool_sizes(config(), {"cuda:0": Cuda(0)}, found)["cuda:0"]

    def left(memory: int, models: int) -> int:
        held = msgspec.structs.replace(WORKERS, tables=memory // 8192 * 4)
        return int(0.95 * memory) - models * fixed(load_of(found[0]), 1, held)

    three, barely, five = (int(part * each / 0.95) for part in (3.2, 1.2, 4.8))
    assert pool(three) == int(0.25 * left(three, 0))
    assert pool(three, "a") == int(0.25 * left(three, 1))
    assert pool(barely) == left(barely, 1)  # the largest has to find a place beside it
    assert pool(five) == left(five, 4)
    with pytest.raises(ConfigError, match="nothing is left for K and V"):
        pool(three, *"abcd")
