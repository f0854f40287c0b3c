"""Any ``Costs`` as a profile, so that the simulator runs over it: published tables, rooflines, other degrees.

A profile is of one device. With tensor parallelism that is one of a model's ``gpus`` devices: all do the
same at the same time, each holds its part of the KV heads.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from muxd.cost.estimate import Costs, Estimate
from muxd.cost.profile import FORMAT, Device, Grid, ModelProfile, Profile
from muxd.cost.shapes import ModelShape, known
from muxd.errors import ConfigError
from muxd.messages import Dtype

# Where it is sampled: at every cell of the published table, and beyond it up to the model's context.
_TOKENS = [1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
_BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
_CONTEXTS = [0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
_PROMPT = 512  # tokens; a larger batch is taken as several prompts of that length


def profile_of(
    costs: Costs,
    device_name: str,
    models: Mapping[str, tuple[str, int]],
    *,
    shapes: Mapping[str, ModelShape] | None = None,
    dtype: Dtype | Mapping[str, Dtype] = "bfloat16",
    rungs: Sequence[int] = (),
    gpu: bool = False,
) -> Profile:
    """``models``: name in the profile -> (name in ``costs``, GPUs). ``shapes``: by name in ``costs``, else
    the catalogue's; ``dtype``: of all models, or of each by its name in ``costs``.

    ``rungs``: the shares that the device has, those of the costs if none are given; ``gpu``: as the daemon
    serves on one. Raises ConfigError for unknown models, degrees and shapes, and models whose shares have
    nothing in common.
    """
    shares = [costs.shares(model, gpus) for model, gpus in models.values()]
    common = sorted(set.intersection(*map(set, shares))) if shares else []
    if not common:
        raise ConfigError(f"{', '.join(models) or 'no models'}: no share that all of them have costs for")
    every = {key: (shapes or {}).get(key[0]) or known(key[0]) for key in models.values()}
    dtypes = dict.fromkeys([cost for cost, _ in every], dtype) if isinstance(dtype, str) else dtype
    found = {
        key: _sampled(costs, device_name, *key, shape, dtypes[key[0]], rungs or common)
        for key, shape in every.items()
    }
    device = Device(device_name, 100, list(rungs or common), gpu=gpu, memory=costs.memory)
    return Profile(FORMAT, device, {name: found[key] for name, key in models.items()})


def _sampled(
    costs: Costs,
    device_name: str,
    model: str,
    gpus: int,
    shape: ModelShape,
    dtype: Dtype,
    rungs: Sequence[int],
) -> ModelProfile:
    sources: Counter[str] = Counter()

    def decode(rows: int, context: int, share: int) -> float:
        return _counted(costs.decode(model, gpus, share, rows, context), sources)

    def prefill(rows: int, context: int, share: int) -> float:
        return _prefill(costs, model, gpus, share, rows, context, sources)

    shares = sorted({*costs.shares(model, gpus), *rungs})
    contexts = [c for c in _CONTEXTS if c <= shape.max_positions]
    grids = [_grid(shares, _TOKENS, contexts, prefill), _grid(shares, _BATCHES, contexts, decode)]
    reading = costs.reading(model, gpus)
    parts = ", ".join(f"{name} {n / sources.total():.0%}" for name, n in sources.most_common())
    return ModelProfile(
        shape=shape.on(gpus, dtype),
        prefill=grids[0],
        decode=grids[1],
        weight_bytes=round(reading.weights),
        sparse=reading.sparse,
        fixed=reading.fixed,
        measured=f"{parts}: {model} on {gpus} x {device_name}",
    )


def _grid(
    shares: list[int], rows: list[int], contexts: list[int], seconds: Callable[[int, int, int], float]
) -> Grid:
    return Grid(
        shares, rows, contexts, [[[seconds(n, c, s) for c in contexts] for n in rows] for s in shares]
    )


def _counted(estimate: Estimate, sources: Counter[str]) -> float:
    sources[estimate.source] += 1
    return estimate.seconds


def _prefill(
    costs: Costs, model: str, gpus: int, share: int, tokens: int, context: int, sources: Counter[str]
) -> float:
    """Tokens after a context: what they cost at the end of a longer prompt and did not at its beginning."""
    batch, length = max(1, tokens // _PROMPT), min(tokens, _PROMPT)
    alone = _counted(costs.prefill(model, gpus, share, batch, length), sources)
    if not context:
        return alone

    def one(size: int) -> float:
        return costs.prefill(model, gpus, share, 1, size).seconds

    return alone + batch * max(0.0, one(context + length) - one(context) - one(length))
