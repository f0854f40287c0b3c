"""A public trace as a workload: a part of it, its requests given to models, times and lengths scaled."""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.errors import ConfigError
from muxd.sim.generate import check_duration, check_seed, popularity
from muxd.sim.traces import KINDS, Trace
from muxd.sim.workload import Item, Workload, check_scales


class Retelling(Struct, frozen=True):
    """What is made of a trace. Requests go to ``models`` at random by the power law, or, where the trace has
    a column of models, to those of ``mapping`` (its name, ours), or to models of its own names."""

    models: list[str]
    mapping: dict[str, str]
    alpha: float = 0.9
    start: float = 0.0  # seconds of the trace after its first request
    duration: float | None = None  # seconds of the workload; None: to the trace's end
    time_scale: float = 1.0
    length_scale: float = 1.0
    seed: int = 0


def retold(trace: Trace, wanted: Retelling) -> tuple[Workload, int]:
    """The workload, and how many requests of 0 tokens were left out. Raises ConfigError."""
    _check(wanted)
    times = np.frombuffer(trace.times, dtype=np.float64)
    times = (times - times.min() - wanted.start) * wanted.time_scale
    inside = (times >= 0) & (times < (float("inf") if wanted.duration is None else wanted.duration))
    prompts, outputs = (np.frombuffer(column, dtype=np.int64) for column in (trace.prompts, trace.outputs))
    whole = (prompts > 0) & (outputs > 0)
    order = np.argsort(times, kind="stable")
    order = order[(inside & whole)[order]]
    if not len(order):
        raise ConfigError(f"no request of {trace.path} is in the part that --start and --duration leave")
    scaled = [np.maximum(1, np.rint(column[order] * wanted.length_scale)) for column in (prompts, outputs)]
    names = _names(trace, wanted, order)
    columns = zip(
        times[order].tolist(), names, *(column.astype(int).tolist() for column in scaled), strict=True
    )
    items = [Item(round(time, 6), name, prompt, output) for time, name, prompt, output in columns]
    left_out = int((inside & ~whole).sum())
    words = {"trace": trace.path.name, "kind": trace.kind, "left_out": left_out}
    told = {name: getattr(wanted, name) for name in wanted.__struct_fields__ if name != "duration"}
    end = {} if wanted.duration is None else {"duration": wanted.duration}
    return Workload(items, {**words, **told, **end}), left_out


def _check(wanted: Retelling) -> None:
    check_scales(wanted.time_scale, wanted.length_scale)
    check_seed(wanted.seed)
    if not 0 <= wanted.start < float("inf"):
        raise ConfigError(f"--start {wanted.start}: must be 0 or more, and finite")
    if wanted.duration is not None:
        check_duration(wanted.duration)


def _names(trace: Trace, wanted: Retelling, order: NDArray[np.int64]) -> list[str]:
    """The model of each request. A row keeps its model whichever part of the trace is taken."""
    if wanted.models:
        parts = popularity(wanted.models, wanted.alpha)
        drawn = np.random.default_rng(wanted.seed).choice(len(parts), len(trace.times), p=parts)
        return [wanted.models[index] for index in drawn[order].tolist()]
    column = KINDS[trace.kind].model
    if not column:
        raise ConfigError(f"a trace of kind {trace.kind} does not say its models: say --models a,b,c")
    known = wanted.mapping or {name: name for name in trace.models}
    for name in known:
        if name not in trace.models:
            raise ConfigError(
                f"--map: {trace.path} has no {name!r} in column {column}, only {_listed(trace)}"
            )
    for name, line in trace.models.items():
        if name not in known:
            raise ConfigError(
                f"{trace.path}, line {line}, column {column}: {name!r} is not in --map; add {name}=MODEL"
            )
    ours = [known[name] for name in trace.models]
    index = np.frombuffer(trace.model, dtype=np.int64)[order]
    return [ours[place] for place in index.tolist()]


def _listed(trace: Trace) -> str:
    return ", ".join(map(repr, trace.models))
