"""What a unit holds on each of its devices, and what that leaves for K and V.

    pool = usable · memory - sum over models of ( weights / g + activations + workers · (context + graphs) )

Contexts and activations are budgets, not measurements; MuxServe's are 0.8 GB a process, two processes a
model, and 6 GB of activations a model whatever its size (muxsched/placement.py).
"""

from collections.abc import Iterable

from msgspec import Struct

from muxd.errors import ConfigError
from muxd.messages import ITEM_BYTES
from muxd.placement.problem import ModelLoad, Problem

_GB = 1e9


class Budget(Struct, frozen=True):
    """What is set aside. ``workers``: processes a model on each device (one a phase, or one for both)."""

    usable: float = 0.95  # of the device's memory
    workers: int = 1
    context: int = 800_000_000  # bytes of a process's device context and libraries
    graphs: int = 300_000_000  # bytes of captured graphs in each worker
    prefill_tokens: int = 2048  # of the largest batch
    max_running: int = 256


def activations(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes of one batch's working memory: residual, normed copy, attention in and out, two halves of the
    feed-forward part (cut over the devices), and a row of float32 logits a sequence."""
    shape, item = model.shape, ITEM_BYTES[model.dtype]
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim / gpus
    width = 4 * shape.hidden + attention + 3 * shape.intermediate / gpus
    return int(budget.prefill_tokens * width * item + budget.max_running * shape.vocab * 4)


def fixed(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes on each device that the model holds whether or not it serves."""
    process = budget.workers * (budget.context + budget.graphs)
    return model.shape.weight_bytes(gpus, model.dtype) + activations(model, gpus, budget) + process


def pool_bytes(problem: Problem, gpus: int, models: Iterable[int], budget: Budget) -> int:
    """For K and V on each device; below 0 where the models do not fit."""
    held = sum(fixed(problem.models[model], gpus, budget) for model in models)
    return int(budget.usable * problem.gpus.memory) - held


def leftover(
    memory: int, here: Iterable[ModelLoad], anywhere: Iterable[ModelLoad], devices: int, budget: Budget
) -> int:
    """For K and V on one of ``devices`` alike, each with ``memory`` bytes: what is left beside the models
    that must be ``here`` and an even part of those that may be ``anywhere``. With several devices there is
    room for the largest of these besides, so that it can come from another. Below 0 where they do not fit.
    """
    fixed_here = sum(fixed(model, 1, budget) for model in here)
    free = [fixed(model, 1, budget) for model in anywhere]
    spare = max(free, default=0) if devices > 1 else 0
    return int(budget.usable * memory) - fixed_here - -(-sum(free) // devices) - spare


def fits(problem: Problem, gpus: int, models: Iterable[int], budget: Budget) -> bool:
    """Every model at least one request of mean length at the same time."""
    models = list(models)
    sequences = sum(problem.models[model].sequence(gpus) for model in models)
    return pool_bytes(problem, gpus, models, budget) >= sequences


def check(problem: Problem, degrees: list[tuple[int, ...]], budget: Budget) -> None:
    """Raises ConfigError where memory alone makes every plan impossible: for one model, or for all together.

    ``degrees``: the mesh sizes each model can run on.
    """
    usable = int(budget.usable * problem.gpus.memory)
    least = 0
    for i, model in enumerate(problem.models):
        known = [gpus for gpus in degrees[i] if gpus <= problem.gpus.per_host]
        if not known:
            raise ConfigError(
                f"{model.name}: its costs are known on {', '.join(map(str, degrees[i])) or 'no'} GPUs, "
                f"a host has {problem.gpus.per_host}"
            )
        needs = {gpus: fixed(model, gpus, budget) + model.sequence(gpus) for gpus in known}
        best = min(needs, key=lambda gpus: needs[gpus])
        if needs[best] > usable:
            raise ConfigError(
                f"{model.name}: needs {needs[best] / _GB:.1f} GB on each of {best} GPUs, {problem.gpus.kind} "
                f"has {usable / _GB:.1f} GB to use: {(needs[best] - usable) / _GB:.1f} GB short"
            )
        least += min(gpus * needs[gpus] for gpus in known)
    total = usable * problem.gpus.count
    if least > total:
        raise ConfigError(
            f"the models need {least / _GB:.1f} GB together, {problem.gpus.count} x {problem.gpus.kind} have "
            f"{total / _GB:.1f} GB to use: {(least - total) / _GB:.1f} GB short, the largest is "
            f"{_largest(problem)}"
        )


def shortfall(problem: Problem, model: int) -> ConfigError:
    """For the caller to raise when a search found no place for ``model``."""
    load = problem.models[model]
    return ConfigError(
        f"{load.name}: no place left for its {load.weights / _GB:.1f} GB of weights on "
        f"{problem.gpus.count} x {problem.gpus.kind}, beside the others; use more GPUs or fewer models"
    )


def _largest(problem: Problem) -> str:
    model = max(problem.models, key=lambda model: model.weights)
    return f"{model.name} with {model.weights / _GB:.1f} GB of weights"
