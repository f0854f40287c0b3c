"""What a unit holds on each of its devices, and what that leaves for K and V.

    pool    = usable · memory - sum over models of ( weights / g + workers · (context + graphs) + scratch )
    scratch = 2 · activations + sets · step + prompt sets · prompt
              + workers · (tables + sampling + streams · workspace)

What torch's allocator takes in a worker is the scratch, and a worker is held to its part of it. All are
budgets from shapes, not measurements (``muxd/worker/design.md`` has each part's source); MuxServe's are 0.8
GB a process, two processes a model, and 6 GB of activations a model whatever its size
(muxsched/placement.py).
"""

from collections.abc import Iterable

from msgspec import Struct

from muxd.device.green import GRAPHS, KEPT, PROMPT_MASKS
from muxd.errors import ConfigError
from muxd.messages import ITEM_BYTES, SAMPLED, Phases
from muxd.placement.problem import ModelLoad, Problem

_GB = 1e9
_LINES = 128  # of the largest graph
_PROMPT = 1024  # tokens of the largest prefill that is recorded
# What a recorded set may waste: torch takes memory in pieces of 2 and 20 MiB. Lines that filter count 2048
# tokens of their vocabularies in 1 KiB each and list 64 KiB, 6 MB for as many of the largest as are sampled
# at once.
_SEGMENTS = 40 << 20
# vLLM logs 6 to 26 MiB for each graph of larger models, with what it works in, which is ``step`` here.
_GRAPH = 6 << 20
# Of a rotary's cosines, and of its sines; longer ones are computed in every step (worker/cuda_parts.py). Some
# models have two: of layers with a window, and of the others.
_ANGLES, _ROTARIES = 64 << 20, 2


class Budget(Struct, frozen=True):
    """What is set aside. ``workers``: processes a model on each device (one for both phases, or one for
    each).

    ``streams`` and ``sets`` are those of a GPU in four parts: every set of parts has a stream, as have the
    whole device and the recording of its graphs; the graphs of the whole and of a few sets of parts are kept,
    of prefills of fewer.
    """

    usable: float = 0.95  # of the device's memory
    workers: int = 1
    # Bytes of a process's device context and libraries. 426 MiB were seen of torch 2.10 with CUDA 13 on an
    # RTX 6000 Ada (unsloth-zoo #1053): kernels are loaded when they are first launched
    # (``device.cuda.worker_env``).
    context: int = 500_000_000
    graphs: int = GRAPHS * _GRAPH  # bytes the driver takes for captured graphs, in each worker
    streams: int = 16  # that a worker may compute on
    workspace: int = 8_519_680  # bytes of cuBLAS for each stream: CUBLAS_WORKSPACE_CONFIG of its environment
    sets: int = 1 + KEPT  # of graphs of decode steps, each with memory of its own
    prompt_sets: int = 1 + PROMPT_MASKS  # and of prefills
    tables: int = 32 << 20  # bytes of the row table in each worker; 0: no table is counted
    block_bytes: int = 8192  # of a head block
    prefill_tokens: int = 2048  # of the largest batch
    max_running: int = 256


def activations(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes of one batch's working memory: residual, normed copy, attention in and out, two halves of the
    feed-forward part (cut over the devices); of the sequences that are sampled at once a row of logits, and
    one in float32."""
    item = ITEM_BYTES[model.dtype]
    logits = min(budget.max_running, SAMPLED) * model.shape.vocab * (item + 4)
    return int(budget.prefill_tokens * _width(model, gpus) * item + logits)


def _width(model: ModelLoad, gpus: int) -> float:
    """Numbers that one token's layer holds at once."""
    shape = model.shape
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head_dim / gpus
    return 4 * shape.hidden + attention + shape.mlp_numbers / gpus + 3 * shape.inputs


def _eager(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes that the largest decode step works in."""
    numbers = min(budget.max_running, _LINES) * (_width(model, gpus) + model.shape.vocab)
    return int(numbers * ITEM_BYTES[model.dtype])


def step(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes that one set of graphs works in: those of the largest recorded step, and what the graphs of each
    size and kind return."""
    lines = min(budget.max_running, _LINES)
    # Three kinds of graphs, and those of all sizes have less than four times the lines of the largest.
    kept = lines * 3 * 4 * model.shape.hidden * ITEM_BYTES[model.dtype]
    return _eager(model, gpus, budget) + kept + _SEGMENTS


def tables(model: ModelLoad, budget: Budget) -> int:
    """Bytes of what a worker keeps from its start: the row table, row lists as long as the longest sequence,
    and cosines and sines of all positions."""
    if not budget.tables:
        return 0
    shape, item = model.shape, ITEM_BYTES[model.dtype]
    row = max(1, budget.block_bytes // (2 * shape.head_dim * item))
    lists = budget.max_running * -(-shape.max_positions // row) * 4
    angles = 2 * min(_ANGLES, shape.max_positions * shape.head_dim * item)
    return budget.tables + lists + _ROTARIES * angles


def prompt(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes that one set of graphs of prefills works in: those of the largest, which is always recorded."""
    return int(_PROMPT * _width(model, gpus) * ITEM_BYTES[model.dtype]) + _SEGMENTS


def scratch(model: ModelLoad, gpus: int, budget: Budget, phases: Phases) -> int:
    """Bytes that torch takes in one worker of ``phases``, beside its weights and the pool.

    Activations count twice: batches differ in size, and torch keeps the pieces of each until it is short.
    What it keeps for other streams it gives back then, so their number does not matter here.
    """
    # Of each sequence the tokens counted for penalties, of those sampled at once their logits in float32.
    sampling = (budget.max_running + min(budget.max_running, SAMPLED)) * model.shape.vocab * 4
    own = tables(model, budget) + sampling + budget.streams * budget.workspace
    prefill = 0 if phases == "decode" else 2 * activations(model, gpus, budget)
    if not budget.sets:
        return own + prefill
    # Also for the whole device, where both work in one memory: its pieces need not suit both.
    reading = 0 if phases == "decode" else budget.prompt_sets * prompt(model, gpus, budget)
    if phases == "prefill":
        return own + prefill + reading
    # A step whose log-probabilities are asked for is computed beside the recorded ones.
    stepping = budget.sets * step(model, gpus, budget) + _eager(model, gpus, budget)
    return own + prefill + reading + stepping


def fixed(model: ModelLoad, gpus: int, budget: Budget) -> int:
    """Bytes on each device that the model holds whether or not it serves."""
    phases: tuple[Phases, ...] = ("both",) if budget.workers == 1 else ("prefill", "decode")
    process = budget.workers * (budget.context + budget.graphs)
    held = sum(scratch(model, gpus, budget, one) for one in phases)
    return model.shape.weight_bytes(gpus, model.dtype) + held + process


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
