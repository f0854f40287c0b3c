"""A GPU with memory for two of four models and their workers, by the daemon's own reckoning of both: the pool
finds its size, whoever is asked for wakes, and answers as at first."""

from pathlib import Path

from support.two_units import ask, models, whole
from support.where import Where, on

from muxd.config import Config, ModelConfig
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import load_of
from muxd.fleet.pool_sizes import workers_budget
from muxd.placement.memory import fixed

NAMES = "abcd"


class Parted:
    """As the stand-in's: in four parts, which costs each model two processes, their streams and graphs."""

    memory, rungs, parts = 8 << 30, (25, 50, 75, 100), 4


def footprint(root: Path) -> int:
    """Bytes that one of the models takes beside the pool."""
    found = ModelConfig("a", str(root / "a"), dtype="float32")
    entry = Entry(found)
    entry.open(gpu=True)
    return fixed(load_of(entry), 1, workers_budget(Config(model=[found]), Parted()))


@on("stand-in")
def test_all_of_them_are_served(where: Where, tmp_path: Path) -> None:
    tables = models(where, tmp_path, dict.fromkeys(NAMES, ""))
    memory = int(3.1 * footprint(tmp_path) / 0.95)  # a quarter of it is the pool's
    where.env["FAKE_CUDA_MEMORY"] = str(memory)
    extra = '[residency]\nleast = 0.0\npatience = 0.1\n[server]\ndevice = "cuda:0"\n'
    with where.live(extra + tables, tmp_path) as daemon:
        assert daemon.status().models == {"ready": 2, "asleep": 2}
        assert 0.2 * memory < daemon.status().pool.bytes < 0.25 * memory
        first = {name: ask(daemon, name) for name in NAMES}
        assert len(set(map(tuple, first.values()))) == len(NAMES)
        for name in reversed(NAMES):
            assert ask(daemon, name) == first[name]
            assert daemon.status().models.get("ready", 0) <= 2
        assert whole(daemon)
