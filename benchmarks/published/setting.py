"""MuxServe's two workloads and its cluster: models, rates, costs, traffic. Its data stay outside.

``--data`` or MUXD_PUBLISHED names a folder with ``llama-a100-latency.json`` (examples/placement/llama.json of
MuxServe's repository) and ``chatlmsys-x*.yaml`` (benchmark/chatlmsys/yamls).
"""

import os
import sys
from pathlib import Path

import numpy as np
from msgspec import structs

from muxd.cost.estimate import Estimate, Reading
from muxd.cost.published import Published
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.placement.problem import Gpus, ModelLoad, Problem
from muxd.placement.released import SIZES
from muxd.sim.generate import arrivals
from muxd.sim.lengths import lengths
from muxd.sim.workload import Item, Workload

GB = 10**9
CLUSTER = Gpus("A100-80G", 80 * GB, 8, 4)
OVERBOOK = 20  # percent, the released configuration's two parts of ten
LENGTHS = {"sharegpt": (161, 338), "chatlmsys": (100, 261)}
# Which mesh a request's latency alone is taken on, for its SLO (MuxServe, scripts of figures 5 and 7).
ALONE_ON = {"llama-7b": 1, "llama-13b": 1, "llama-30b": 4, "llama-65b": 8}
SYNTHETIC = ["llama-7b"] * 12 + ["llama-13b"] * 4 + ["llama-30b"] * 2 + ["llama-65b"]
RATES = (20, 30, 40, 50)  # of the most popular model: rate scales 1.0, 1.5, 2.0, 2.5
ALPHAS = (2.1, 1.7, 1.3, 0.9, 0.7)
CONDENSED = (500, 1200, 2000)


class Runtime:
    """``Costs`` of MuxServe's engine: its table, and its scheduling of each sequence in every decode step
    (0.1 ms for 7B, its placement.py:160-167), which the table leaves out."""

    def __init__(self, table: Published):
        self._table = table
        self.memory = table.memory

    def reading(self, model: str, gpus: int) -> Reading:
        return self._table.reading(model, gpus)

    def models(self) -> list[str]:
        return self._table.models()

    def degrees(self, model: str) -> list[int]:
        return self._table.degrees(model)

    def shares(self, model: str, gpus: int) -> list[int]:
        return self._table.shares(model, gpus)

    def prefill(self, model: str, gpus: int, share: int, batch: int, length: int) -> Estimate:
        return self._table.prefill(model, gpus, share, batch, length)

    def decode(self, model: str, gpus: int, share: int, batch: int, context: float) -> Estimate:
        found = self._table.decode(model, gpus, share, batch, context)
        return Estimate(found.seconds + SIZES[model].overhead * batch, found.source)


def data(given: Path | None) -> Path:
    """The folder with the published data; ends the program with a sentence where it is not there."""
    folder = given or Path(os.environ.get("MUXD_PUBLISHED", "published-data"))
    if not (folder / "llama-a100-latency.json").is_file():
        print(
            f"skipped: {folder} has no llama-a100-latency.json. It is examples/placement/llama.json of "
            "MuxServe's repository (hao-ai-lab/MuxServe), with its benchmark/chatlmsys/yamls beside it as "
            "chatlmsys-x500.yaml and so on; say where with --data or MUXD_PUBLISHED",
            file=sys.stderr,
        )
        raise SystemExit(0)
    return folder


def costs(folder: Path, runtime: str) -> Published | Runtime:
    """``runtime``: "muxserve" with its scheduling seconds, "table" without."""
    table = Published.read(folder / "llama-a100-latency.json")
    return Runtime(table) if runtime == "muxserve" else table


def load(name: str, size: str, rate: float, means: tuple[int, int]) -> ModelLoad:
    return ModelLoad(name, size, CATALOGUE[size], rate, *means, dtype="float16")


def synthetic(alpha: float, most: float) -> Problem:
    """19 models, rates by a power law in that order, so that 7B models are the popular ones."""
    models = tuple(
        load(f"llm-{i}", size, most * (i + 1) ** -alpha, LENGTHS["sharegpt"])
        for i, size in enumerate(SYNTHETIC)
    )
    return Problem(models, CLUSTER, OVERBOOK)


def chatlmsys(folder: Path, condensed: int) -> Problem:
    """16 models at the rates of half a day of ChatLMSYS, ``condensed`` times faster."""
    import yaml

    known = yaml.safe_load((folder / f"chatlmsys-x{condensed}.yaml").read_text())
    models = tuple(load(m["name"], m["model"], m["rate"], LENGTHS["chatlmsys"]) for m in known["models"])
    return Problem(models, CLUSTER, OVERBOOK)


def chatlmsys_at(folder: Path, mean: float) -> Problem:
    """The same popularity at another mean rate a model; what the other condensations do to the rates."""
    problem = chatlmsys(folder, 2000)
    factor = mean * len(problem.models) / problem.rate
    models = tuple(structs.replace(model, rate=model.rate * factor) for model in problem.models)
    return structs.replace(problem, models=models)


def traffic(problem: Problem, kind: str, seconds: float, seed: int) -> Workload:
    """Poisson arrivals at each model's own rate, lengths of ``kind``.

    Every model has a random stream of its own; MuxServe's generator sorted names and mixed them up.
    """
    drawn, items = lengths(kind), []
    for index, model in enumerate(problem.models):
        random = np.random.default_rng([seed, index])
        times = arrivals(random, model.rate, seconds, 1.0)
        prompt, output = drawn.draw(random, len(times))
        columns = zip(times.tolist(), prompt.tolist(), output.tolist(), strict=True)
        items += [Item(time, model.name, ins, outs) for time, ins, outs in columns]
    items.sort(key=lambda item: item.time)
    return Workload(items, {"duration": seconds, "lengths": kind, "seed": seed})


def alone(problem: Problem, table: Published | Runtime) -> CostTable:
    """Every model on the devices its SLO is counted on."""
    named = {model.name: (model.cost, ALONE_ON[model.cost]) for model in problem.models}
    return CostTable(profile_of(table, problem.gpus.kind, named, dtype="float16"))
