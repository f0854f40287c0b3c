"""A plan tried out before anybody runs it: its units simulated for a while, by muxd and by what others do.

The policies are the engine's, on the same layout, and what people do today:

mux       as `muxctl plan --out` writes the layout: equal parts, lent; one pool
temporal  one batch at a time on the whole device
spatial   static slices, as MPS gives them: any percent, nothing lent, a fixed part of the pool
servers   separate servers that take turns on the whole device, a fixed part of the pool each
swap      one model in memory at a time, as llama-swap has it by default
"""

from collections.abc import Callable, Iterable, Sequence
from math import inf

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from muxd.config import SchedulerConfig
from muxd.cost.estimate import Costs
from muxd.cost.table import CostTable
from muxd.engine.policies import Policy
from muxd.placement.problem import EQUAL, ModelLoad, Plan, Problem, Trial, UnitLoad, units
from muxd.placement.promises import TIMES
from muxd.sim.build import make_scheduler
from muxd.sim.cluster import Cluster, Terms, unit_config
from muxd.sim.generate import mixed
from muxd.sim.records import Outcome, Records
from muxd.sim.report import quantiles
from muxd.sim.swap import SwapTerms, swap
from muxd.sim.traffic import ModelTraffic
from muxd.sim.workload import Workload
from muxd.sim.world import World

POLICIES = ("mux", "temporal", "spatial", "servers", "swap")
_STEPS = 20_000  # decode steps that a run may take by prediction: some seconds
_LEAST = 4  # tokens: shorter means have no lognormal
_SERVER = Terms(scheduler=SchedulerConfig(), block_bytes=8192, max_running=128)  # the daemon's defaults

Seconds = NDArray[np.float64]


def window(problem: Problem, plan: Plan, requests: int) -> float:
    """Seconds of arrivals that are enough to see how a plan does, and not more than is quickly simulated.
    ``requests``: of each unit on the mean."""
    steps = sum(min(1 / member.tpot, member.rate * _output(problem, member.model)) for member in plan.members)
    busy = sum(1 for unit in plan.units if unit.members)
    return min(requests * busy / problem.rate, _STEPS / steps)


def traffic(problem: Problem, seconds: float) -> Workload:
    """Poisson arrivals at the problem's rates, lengths about its means."""
    models = [ModelTraffic(model.name, model.rate, _lengths(model)) for model in problem.models]
    return mixed(models, seconds)


def beginning(workload: Workload, seconds: float) -> Workload:
    """Its first seconds."""
    items = [item for item in workload.items if item.time < seconds]
    return Workload(items, {**workload.header, "duration": min(seconds, workload.duration)})


class Trials:
    """Tries plans of ``problem``. ``rungs``: the shares of its devices; ``usable``: bytes of each for weights
    where models are swapped."""

    def __init__(self, problem: Problem, costs: Costs, rungs: Sequence[int], usable: float):
        self._problem, self._costs, self._rungs = problem, costs, tuple(rungs)
        self._models = {model.name: model for model in problem.models}
        self._usable = usable
        self._tables: dict[tuple[tuple[str, ...], int, bool], CostTable] = {}

    def run(
        self, plan: Plan, workload: Workload, policy: str, advance: Callable[[int], None] = lambda _: None
    ) -> Trial:
        """``advance(1)`` after each unit: what it raises ends it."""
        records = Records(workload)
        alone = np.zeros(len(workload.items))
        for unit in units(plan):
            places, part = workload.of(unit.models)
            done, cost = self._unit(unit, part, policy)
            records.put(places, done)
            alone[places] = done.alone(cost)
            advance(1)
        return self._trial(policy, records, alone)

    def _unit(self, unit: UnitLoad, part: Workload, policy: str) -> tuple[Records, CostTable]:
        whole = self._table(unit, sliced=False)
        cost = self._table(unit, sliced=True) if policy == "spatial" else whole
        split = "no" if policy == "spatial" else "auto"
        scheduler = structs.replace(_SERVER.scheduler, overbook=self._problem.overbook, split_phases=split)
        served = structs.replace(unit, decode_shares=(EQUAL,) * len(unit.models))
        config = unit_config(served, structs.replace(_SERVER, scheduler=scheduler), self._models)
        kind: str | type[Policy] = self._swapping(unit) if policy == "swap" else policy
        return World(make_scheduler(config, cost, kind, meshed=unit.degree > 1), cost, part).run(), whole

    def _table(self, unit: UnitLoad, *, sliced: bool) -> CostTable:
        """``sliced``: each model has its percent and nothing else."""
        key = (unit.models, unit.degree, sliced)
        if key not in self._tables:
            part = max(1, 100 // len(unit.models))
            rungs = tuple(sorted({part, 100})) if sliced else self._rungs
            cluster = Cluster(self._problem.models, self._costs, self._problem.gpus.kind, rungs, gpu=True)
            self._tables[key] = cluster.table(unit)
        return self._tables[key]

    def _swapping(self, unit: UnitLoad) -> type[Policy]:
        models = [self._models[name] for name in unit.models]
        weights = {model.name: model.shape.weight_bytes(unit.degree, model.dtype) for model in models}
        return swap(weights, SwapTerms(self._usable, most=1))

    def _trial(self, policy: str, records: Records, alone: Seconds) -> Trial:
        items = records.workload.items
        served = records.outcome == Outcome.SERVED
        first, end = records.first - records.sent, records.end - records.sent
        answers = np.array([item.output_tokens for item in items])
        token = np.where(answers > 1, (records.end - records.first) / np.maximum(1, answers - 1), np.nan)
        kept = served & _kept([self._models[item.model] for item in items], first, token, end, alone)
        names = np.array([item.model for item in items])
        ttft, tpot = quantiles(first[served]), quantiles(token[served])
        return Trial(
            policy=policy,
            requests=len(items),
            on_time=float(kept.mean()),
            worst=min(float(kept[names == name].mean()) for name in set(names.tolist())),
            ttft_p50=ttft.p50 if ttft else None,
            ttft_p99=ttft.p99 if ttft else None,
            tpot_p50=tpot.p50 if tpot else None,
            tpot_p99=tpot.p99 if tpot else None,
            per_second=_pace(records, served),
        )


def _kept(
    models: Sequence[ModelLoad], first: Seconds, token: Seconds, end: Seconds, alone: Seconds
) -> NDArray[np.bool_]:
    """A token time that does not exist (an answer of one token) keeps every promise."""

    def column(values: Iterable[float]) -> Seconds:
        return np.array([value or inf for value in values])

    ttft, tpot = column(m.ttft_slo for m in models), column(m.tpot_slo for m in models)
    promised = np.isfinite(ttft) | np.isfinite(tpot)
    on_time = (first <= ttft) & (np.isnan(token) | (token <= tpot))
    found: NDArray[np.bool_] = np.where(promised, on_time, end <= TIMES * alone)
    return found


def _pace(records: Records, served: NDArray[np.bool_]) -> float:
    """Requests that end a second in the second half of the arrivals, when those of the first are answered."""
    until = records.workload.duration
    ended = served & (records.end > until / 2) & (records.end <= until)
    return float(ended.sum() / (until / 2)) if until else 0.0


def _output(problem: Problem, name: str) -> int:
    return next(model.output for model in problem.models if model.name == name)


def _lengths(model: ModelLoad) -> str:
    if min(model.prompt, model.output) > _LEAST:
        return f"lognormal:{model.prompt},{model.output}"
    return f"constant:{model.prompt},{model.output}"
