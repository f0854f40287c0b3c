"""Synthetic workloads: popularity over models, arrivals in time, lengths. Deterministic in the seed.

A model's requests depend on the seed, its name and what is said of it, on nothing else: models can be added,
taken away and changed, and all others are asked the same at the same times.
"""

from hashlib import blake2b

import msgspec
import numpy as np
from msgspec import Struct
from numpy.random import Generator
from numpy.typing import NDArray

from muxd.errors import ConfigError
from muxd.sim.lengths import lengths
from muxd.sim.traffic import MOST_CV, ModelTraffic
from muxd.sim.workload import Item, Workload, check_scales

GENERATOR = "muxd.sim.generate 2"  # changes when the same seed gives other requests
_MOST_REQUESTS = 20_000_000  # in a workload; they are made in memory


class Recipe(Struct, frozen=True):
    """Models that differ by their popularity only; it is the header of the file."""

    models: list[str]  # most popular first
    rate: float  # requests a second, all models together
    duration: float  # seconds
    alpha: float = 0.9  # rate of the model of rank i is proportional to i^-alpha
    cv: float = 1.0  # coefficient of variation of the gaps: 1 is Poisson, above is bursts (gamma)
    lengths: str = "sharegpt"
    length_scale: float = 1.0
    seed: int = 0


def popularity(models: list[str], alpha: float) -> NDArray[np.float64]:
    """The part of all requests that each model has, in the given order: rank⁻ᵅ. Raises ConfigError.

    MuxServe's released generator gave llm-10's rate to llm-2, because it sorted names in between.
    """
    if (
        not models
        or len(set(models)) < len(models)
        or not all(name and name.isprintable() for name in models)
    ):
        raise ConfigError(f"--models: needs names, each once, not {models}")
    if not 0 <= alpha < 100:
        raise ConfigError(f"--alpha {alpha}: must be 0 (all models alike) or more, below 100")
    weights = np.arange(1, len(models) + 1, dtype=np.float64) ** -alpha
    parts: NDArray[np.float64] = weights / weights.sum()
    return parts


def rates(models: list[str], rate: float, alpha: float) -> dict[str, float]:
    """Requests a second for each model, ``rate`` in total."""
    return dict(zip(models, (rate * popularity(models, alpha)).tolist(), strict=True))


def generate(recipe: Recipe) -> Workload:
    """Raises ConfigError for a recipe that cannot be."""
    if not 0 < recipe.rate < float("inf"):
        raise ConfigError(f"--rate {recipe.rate}: must be above 0 and finite")
    if not 0 < recipe.cv <= MOST_CV:
        raise ConfigError(f"--cv {recipe.cv}: must be above 0 and at most {MOST_CV:g}")
    by_model = rates(recipe.models, recipe.rate, recipe.alpha)
    models = [ModelTraffic(name, rate, recipe.lengths, recipe.cv) for name, rate in by_model.items()]
    return mixed(models, recipe.duration, recipe.length_scale, recipe.seed, msgspec.structs.asdict(recipe))


def mixed(
    models: list[ModelTraffic],
    duration: float,
    length_scale: float = 1.0,
    seed: int = 0,
    words: dict[str, object] | None = None,
) -> Workload:
    """What all models are asked, in order of time; ``words`` say in the header what they were made from.

    ``traffic.check`` has been through the models. Raises ConfigError for the other arguments.
    """
    check_duration(duration)
    check_seed(seed)
    check_scales(1.0, length_scale)
    expected = duration * sum(model.rate * model.highest(duration) for model in models)
    if expected > _MOST_REQUESTS:
        raise ConfigError(
            f"up to {expected:.3g} requests in {duration:g} s are more than {_MOST_REQUESTS:,}: "
            "lower the rates or --duration"
        )
    items = [item for model in models for item in requests(model, duration, length_scale, seed)]
    items.sort(key=lambda item: item.time)
    default = {"traffic": msgspec.to_builtins(models), "length_scale": length_scale}
    rest = {"duration": duration, "seed": seed, "rates": {model.name: model.rate for model in models}}
    return Workload(items, {"generator": GENERATOR, **(words or default), **rest})


def check_duration(duration: float) -> None:
    if not 0 < duration < float("inf"):
        raise ConfigError(f"--duration {duration}: must be above 0 and finite")


def check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"--seed {seed}: must be 0 or more")


def requests(model: ModelTraffic, duration: float, length_scale: float, seed: int) -> list[Item]:
    """Of one model, in order of time.

    Where the rate varies, arrivals at its highest are drawn and thinned: a request at time t stays with the
    probability factor(t) / highest, so that the rate at t is rate · factor(t) whatever the variation. Gaps
    have their ``cv`` where the factor is highest; elsewhere, as requests are left out at random, they are
    nearer to Poisson. A phase of factor 0 takes its requests away and leaves all others as they are.
    """
    name = int.from_bytes(blake2b(model.name.encode(), digest_size=8).digest())
    in_time, in_length, in_thinning = (np.random.default_rng([seed, name, use]) for use in range(3))
    highest = model.highest(duration)
    times = arrivals(in_time, model.rate * highest, duration, model.cv)
    drawn = lengths(model.lengths, scale=length_scale).draw(in_length, len(times))
    kept = in_thinning.random(len(times)) * highest < model.factor(times)
    columns = zip(*(column[kept].tolist() for column in (times, *drawn)), strict=True)
    return [Item(round(time, 6), model.name, prompt, output) for time, prompt, output in columns]


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
