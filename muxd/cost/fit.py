"""The constants of ``muxd.cost.law`` from what `muxd profile` measured: batches alone, and beside each other.

* **reached**: a decode step of one sequence is nothing but reading weights and what is fixed, so the model
  that reads most bytes a second at a share says what one batch reaches there;
* **fixed**: what the same step of another model takes beyond its bytes at that speed;
* **limit**: with which the law comes nearest to all pairs (least squares of the logarithms), and no less than
  one batch reaches alone.
"""

from math import log

import numpy as np
from msgspec import structs

from muxd.cost.law import Memory, Parts, factors, parts
from muxd.cost.profile import Beside, ModelProfile, Profile

_LIMITS = 400  # tried, evenly in their logarithm


def fitted(profile: Profile) -> Profile:
    """With the device's memory, and each model's fixed part, by all of its measured models. The same again
    where none says how many bytes it reads."""
    models = {name: model for name, model in profile.models.items() if model.weight_bytes}
    if not models:
        return profile
    shares = next(iter(models.values())).decode.shares
    reached = [
        max(model.read(_fewest(model)) / _step(model, i) for model in models.values())
        for i in range(len(shares))
    ]
    reached = np.maximum.accumulate(reached).tolist()
    fixed = {
        name: max(0.0, _step(model, -1) - model.read(_fewest(model)) / reached[-1])
        for name, model in models.items()
    }
    known = {
        name: structs.replace(model, fixed=fixed.get(name, 0.0)) for name, model in profile.models.items()
    }
    memory = Memory(_limit(known, Memory(reached[-1], shares, reached)), shares, reached)
    return structs.replace(profile, device=structs.replace(profile.device, memory=memory), models=known)


def predicted(model: ModelProfile, memory: Memory) -> dict[str, tuple[float, float]]:
    """How many times as long a batch takes beside another: measured, and by the law."""
    if model.beside is None:
        return {}
    decode, prefill = _both(model, model.beside, memory)
    pairs = {
        "decode beside decode": (model.beside.decode_by_decode, decode, decode),
        "decode beside prefill": (model.beside.decode_by_prefill, decode, prefill),
        "prefill beside decode": (model.beside.prefill_by_decode, prefill, decode),
    }
    return {
        name: (seconds / own.seconds, factors((own, other), memory)[0])
        for name, (seconds, own, other) in pairs.items()
    }


def _step(model: ModelProfile, share: int) -> float:
    """Seconds of a step of the fewest sequences with the least context, at the share of that index."""
    return min(plane[0][0] for plane in model.decode.seconds[: share + 1 or None])


def _fewest(model: ModelProfile) -> int:
    """Of the sequences in that step."""
    return model.decode.rows[0]


def _both(model: ModelProfile, beside: Beside, memory: Memory) -> tuple[Parts, Parts]:
    speed, shape = memory.alone(beside.share), model.shape
    read = beside.batch * (shape.kv_bytes * beside.context + 2 * shape.state_bytes)
    return (
        parts(beside.decode, model.fixed, model.read(beside.batch), read, speed),
        parts(beside.prefill, model.fixed, model.read(beside.tokens), 0.0, speed),
    )


def _limit(models: dict[str, ModelProfile], memory: Memory) -> float:
    measured = [model for model in models.values() if model.beside is not None]
    if not measured:
        return memory.limit
    most = max(memory.reached[0] * 100 / memory.shares[0], memory.limit)

    def error(limit: float) -> float:
        tried = structs.replace(memory, limit=limit)
        pairs = [pair for model in measured for pair in predicted(model, tried).values()]
        return sum((log(max(1.0, found)) - log(law)) ** 2 for found, law in pairs)

    limits = np.geomspace(memory.limit, 2 * most, _LIMITS).tolist()
    return float(min(limits, key=error))  # of those that are as near, the least
