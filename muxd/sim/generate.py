"""Synthetic workloads: popularity over models, arrivals in time, lengths. Deterministic in the seed."""

import numpy as np
from msgspec import Struct
from numpy.random import Generator
from numpy.typing import NDArray

from muxd.errors import ConfigError
from muxd.sim.lengths import lengths
from muxd.sim.workload import Item, Workload

GENERATOR = "muxd.sim.generate 1"  # changes when the same seed gives other requests


class Recipe(Struct, frozen=True):
    """What a synthetic workload is made from; it is the header of the file."""

    models: list[str]  # most popular first
    rate: float  # requests a second, all models together
    duration: float  # seconds
    alpha: float = 0.9  # rate of the model of rank i is proportional to i^-alpha
    cv: float = 1.0  # coefficient of variation of the gaps: 1 is Poisson, above is bursts (gamma)
    lengths: str = "sharegpt"
    length_scale: float = 1.0
    seed: int = 0


def rates(models: list[str], rate: float, alpha: float) -> dict[str, float]:
    """Requests a second for each model, in the given order: rank⁻ᵅ, scaled to ``rate`` in total.

    MuxServe's released generator gave llm-10's rate to llm-2, because it sorted names in between.
    """
    weights = np.arange(1, len(models) + 1, dtype=np.float64) ** -alpha
    parts = (rate * weights / weights.sum()).tolist()
    return dict(zip(models, parts, strict=True))


def generate(recipe: Recipe) -> Workload:
    """Raises ConfigError for a recipe that cannot be."""
    _check(recipe)
    drawn = lengths(recipe.lengths, scale=recipe.length_scale)
    by_model = rates(recipe.models, recipe.rate, recipe.alpha)
    items: list[Item] = []
    for index, (model, rate) in enumerate(by_model.items()):
        # A stream of its own for every model: changing one rate leaves the others' requests as they are.
        random = np.random.default_rng([recipe.seed, index])
        times = arrivals(random, rate, recipe.duration, recipe.cv)
        prompt, output = drawn.draw(random, len(times))
        columns = zip(times.tolist(), prompt.tolist(), output.tolist(), strict=True)
        items += [Item(round(time, 6), model, ins, outs) for time, ins, outs in columns]
    items.sort(key=lambda item: item.time)
    return Workload(items, _header(recipe, by_model))


def arrivals(random: Generator, rate: float, duration: float, cv: float) -> NDArray[np.float64]:
    """Times in [0, duration) with gamma gaps of mean 1/rate: shape 1/cv², scale cv²/rate.

    The process is taken as running before time 0 already: the first gap is entered at a random place, or
    bursty workloads would always begin with a burst.
    """
    if rate <= 0:
        return np.empty(0)
    shape, scale = 1 / cv**2, cv**2 / rate
    # The gap that covers a random moment is length-biased: gamma with shape + 1.
    start = random.gamma(shape + 1, scale) * random.uniform()
    found = [np.array([start])]
    last = start
    while last < duration:
        more = last + np.cumsum(random.gamma(shape, scale, max(16, int(rate * (duration - last) * 1.1))))
        found.append(more)
        last = float(more[-1])
    times: NDArray[np.float64] = np.concatenate(found)
    return times[times < duration]


def _check(recipe: Recipe) -> None:
    if not recipe.models or len(set(recipe.models)) < len(recipe.models) or not all(recipe.models):
        raise ConfigError(f"--models: needs names, each once, not {recipe.models}")
    for option, value in (("rate", recipe.rate), ("duration", recipe.duration), ("cv", recipe.cv)):
        if not 0 < value < float("inf"):
            raise ConfigError(f"--{option} {value}: must be above 0 and finite")
    if not 0 <= recipe.alpha < 100:
        raise ConfigError(f"--alpha {recipe.alpha}: must be 0 (all models alike) or more")


def _header(recipe: Recipe, by_model: dict[str, float]) -> dict[str, object]:
    words = {name: getattr(recipe, name) for name in recipe.__struct_fields__}
    return {"generator": GENERATOR, **words, "rates": by_model}
