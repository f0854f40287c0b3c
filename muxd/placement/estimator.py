"""What a unit serves, by any cost model: the published estimator, solved for the batches instead of grown.

MuxServe, equation 3: prefills of a unit run one after another on the whole device, decodes together, so

    throughput(m) = b(m) / (sum of prefill(i, b(i)) over all models i + output(m) · decode(m, b(m)))

The batches are the least that meet every rate: b(m) = rate(m) · (that denominator), a fixed point that is
reached from below, as both sides only grow. Three things the published estimator leaves out:

* memory: the sequences of all models share the pool, and shrink together when it is too small;
* shares: decodes that ask for more than 100 percent together (plus ``overbook``) take turns, each counted for
  the part of the time it decodes, so cold models cost what they use. Turns are whole steps: a model waits for
  a step of everybody it does not fit beside, so a small model beside a large one steps as seldom as that;
* bandwidth: a tenth of the multiprocessors reaches half of it, so by the table ten decodes together would
  move five times what the memory can. All together move at most its limit (``muxd.cost.law``).

A unit is worth the requests a second it serves, times ``weight``, no model more than its rate. One percent
more for speed (the seconds of an answer alone, over those in the unit) decides between equals.
"""

from collections.abc import Sequence
from math import inf

from msgspec import Struct

from muxd.cost.estimate import Costs
from muxd.placement import memory
from muxd.placement.curves import MOST, Curve, Curves
from muxd.placement.memory import Budget
from muxd.placement.problem import Member, Mesh, ModelLoad, Problem, Unit, check

PREFILL_SHARE = 100
_SPEED = 0.01
_ROUNDS = 24
_CLOSE = 1e-3
_REMEMBERED = 200_000  # values; then it begins anew


class Load(Struct, frozen=True):
    """A unit at work. Lists run over its models."""

    batches: list[float]
    prefills: list[float]  # seconds, each of its whole batch
    decodes: list[float]  # seconds a step, alone on its share
    stretch: float  # times longer, where decodes take turns
    steps: list[float]  # seconds from step to step, the wait for others in it
    throughputs: list[float]

    @property
    def round(self) -> float:
        """Seconds of one prefill of every model."""
        return sum(self.prefills)


class Estimator:
    """``Appraiser`` over ``costs``. Raises ConfigError for models the costs do not know, and for memory that
    cannot hold them in any plan."""

    def __init__(self, problem: Problem, costs: Costs, budget: Budget | None = None):
        check(problem)
        memory_limit = costs.memory.limit if costs.memory else inf
        self._limits = 100.0 + problem.overbook, memory_limit
        self.problem = problem
        self.budget = budget or Budget()
        self._costs, self._curves = costs, Curves(costs)
        per_host = problem.gpus.per_host
        known = [tuple(costs.degrees(model.cost)) for model in problem.models]
        memory.check(problem, known, self.budget)
        self._degrees = [tuple(g for g in degrees if g <= per_host) for degrees in known]
        self._usable = int(self.budget.usable * problem.gpus.memory)
        self._fixed = [
            {g: memory.fixed(model, g, self.budget) for g in degrees}
            for model, degrees in zip(problem.models, self._degrees, strict=True)
        ]
        self._sequence = [
            {g: model.sequence(g) for g in degrees}
            for model, degrees in zip(problem.models, self._degrees, strict=True)
        ]
        self._rungs: dict[tuple[str, int], tuple[int, ...]] = {}
        self._candidates: dict[tuple[int, int], int | None] = {}
        self._alone = [min(self._answer(m, g, 100) for g in ds) for m, ds in enumerate(self._degrees)]
        self._values: dict[tuple[int, tuple[int, ...], tuple[int, ...]], float] = {}

    # ---- the interface of searches -------------------------------------------------------------------

    def degrees(self, model: int) -> tuple[int, ...]:
        return self._degrees[model]

    def demand(self, model: int) -> tuple[float, float]:
        """Operations a second: 2 a parameter and token. And the parameters."""
        load = self.problem.models[model]
        parameters = load.shape.parameters
        return 2.0 * parameters * load.rate * (load.prompt + load.output), parameters

    def candidate(self, model: int, gpus: int) -> int | None:
        """MuxServe, algorithm 2."""
        key = (model, gpus)
        if key not in self._candidates:
            fits = gpus in self._degrees[model] and self.fits(gpus, (model,), (100,))
            self._candidates[key] = self._fewest(model, gpus) if fits else None
        return self._candidates[key]

    def rungs(self, model: int, gpus: int) -> tuple[int, ...]:
        key = (self.problem.models[model].cost, gpus)
        if key not in self._rungs:
            self._rungs[key] = tuple(self._costs.shares(*key))
        return self._rungs[key]

    def fits(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> bool:
        """Memory only: shares above 100 percent together cost time, not feasibility."""
        if any(gpus not in self._degrees[model] for model in models):
            return False
        return self.pool(gpus, models) >= sum(self._sequence[model][gpus] for model in models)

    def room(self, gpus: int, models: Sequence[int]) -> float:
        return float(gpus * self.pool(gpus, models))

    def value(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> float:
        key = (gpus, tuple(models), tuple(shares))
        if key not in self._values:
            if len(self._values) >= _REMEMBERED:
                self._values.clear()
            self._values[key] = self._value(*key) if models else 0.0
        return self._values[key]

    def objective(self, total: float) -> float:
        """Requests a second (times weights), and up to one percent of them for speed."""
        return total

    def unit(self, mesh: Mesh, devices: tuple[int, ...]) -> Unit:
        load = self.load(mesh.gpus, mesh.models, mesh.shares)
        held = [b * self._sequence[m][mesh.gpus] for m, b in zip(mesh.models, load.batches, strict=True)]
        members = tuple(self._member(mesh, load, i, held[i] / sum(held)) for i in range(len(mesh.models)))
        pool = max(0, self.pool(mesh.gpus, mesh.models))
        return Unit(mesh.host, devices, members, pool, self._utilisation(mesh, load))

    # ---- one unit ------------------------------------------------------------------------------------

    def pool(self, gpus: int, models: Sequence[int]) -> int:
        """Bytes for K and V on each device."""
        return self._usable - sum(self._fixed[model][gpus] for model in models)

    def load(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> Load:
        """The least batches that meet the rates, or what memory and the largest batch allow."""
        loads = [self.problem.models[model] for model in models]
        curves = [self._curve(load, gpus, share) for load, share in zip(loads, shares, strict=True)]
        batches, stretch, turns = _fixed_point(loads, curves, shares, self._limits)
        sequences = [self._sequence[model][gpus] for model in models]
        batches = _squeezed(batches, sequences, self.pool(gpus, models))
        times = [curve.at(batch) for curve, batch in zip(curves, batches, strict=True)]
        busy = _busy(loads, batches, times)
        stretch = max(stretch, _turns(busy, times, shares, self._limits))
        waits = list(map(max, turns, _waits(busy, times, shares, self._limits[0])))
        wait = sum(prefill for prefill, _, _ in times)
        steps = [max(stretch * time[1], time[1] + turn) for time, turn in zip(times, waits, strict=True)]
        throughputs = [
            batch / (wait + load.output * step)
            for load, batch, step in zip(loads, batches, steps, strict=True)
        ]
        return Load(batches, [p for p, _, _ in times], [d for _, d, _ in times], stretch, steps, throughputs)

    def _curve(self, load: ModelLoad, gpus: int, share: int) -> Curve:
        return self._curves.get(load.cost, gpus, share, load.prompt, load.output, PREFILL_SHARE)

    def _answer(self, model: int, gpus: int, share: int) -> float:
        """Seconds of one request that is alone."""
        load = self.problem.models[model]
        prefill, decode, _ = self._curve(load, gpus, share).at(1)
        return prefill + load.output * decode

    def _value(self, gpus: int, models: tuple[int, ...], shares: tuple[int, ...]) -> float:
        load, total = self.load(gpus, models, shares), 0.0
        wait = load.round
        for i, model in enumerate(models):
            wanted = self.problem.models[model]
            seconds = wait + wanted.output * load.steps[i]
            served = min(wanted.rate, load.throughputs[i])
            total += wanted.weight * served * (1.0 + _SPEED * self._alone[model] / seconds)
        return total

    def _fewest(self, model: int, gpus: int) -> int:
        """The first share that meets the rate alone, else the one that comes nearest."""
        rate, best, chosen = self.problem.models[model].rate, 0.0, 100
        for share in self.rungs(model, gpus):
            throughput = self.load(gpus, (model,), (share,)).throughputs[0]
            if throughput >= rate * (1 - _CLOSE):
                return share
            if throughput > best * (1 + _CLOSE):
                best, chosen = throughput, share
        return chosen

    def _member(self, mesh: Mesh, load: Load, i: int, weight: float) -> Member:
        wanted, throughput = self.problem.models[mesh.models[i]], load.throughputs[i]
        late = throughput < wanted.rate * (1 - _CLOSE)
        return Member(
            model=wanted.name,
            prefill_share=PREFILL_SHARE,
            decode_share=mesh.shares[i],
            batch=round(load.batches[i]),
            weight=weight,
            rate=wanted.rate,
            throughput=throughput if late else max(throughput, wanted.rate),
            ttft=None if late else load.round,
            tpot=load.steps[i] + load.round / wanted.output,
        )

    def _utilisation(self, mesh: Mesh, load: Load) -> float:
        """Share-seconds the rates ask for: prefills on the whole device, decodes on their shares."""
        used = 0.0
        for i, model in enumerate(mesh.models):
            wanted = self.problem.models[model]
            decode = wanted.output * load.decodes[i] * mesh.shares[i] / 100
            used += wanted.rate / load.batches[i] * (load.prefills[i] + decode)
        return used


Times = tuple[float, float, float]  # of a batch: seconds of its prefill, of a decode step, bytes a second


def _fixed_point(
    loads: list[ModelLoad], curves: list[Curve], shares: Sequence[int], limits: tuple[float, float]
) -> tuple[list[float], float, list[float]]:
    """Batches, stretch and each model's wait for others' steps, from below. ``limits``: percent booked
    together, and bytes a second together."""
    wait, stretch = sum(curve.at(1.0)[0] for curve in curves), 1.0
    waits = [0.0] * len(loads)
    batches: list[float] = []
    for _ in range(_ROUNDS):
        batches = [
            max(
                curve.needed(load.rate, wait, load.output * stretch),
                curve.needed(load.rate, wait + load.output * turn, load.output) if turn else 0.0,
            )
            for load, curve, turn in zip(loads, curves, waits, strict=True)
        ]
        times = [curve.at(batch) for curve, batch in zip(curves, batches, strict=True)]
        busy = _busy(loads, batches, times)
        prefills = sum(prefill for prefill, _, _ in times)
        turns = _turns(busy, times, shares, limits)
        longer = _waits(busy, times, shares, limits[0])
        close = all(new <= old * (1 + _CLOSE) for new, old in zip(longer, waits, strict=True))
        if prefills <= wait * (1 + _CLOSE) and turns <= stretch * (1 + _CLOSE) and close:
            break
        wait, stretch, waits = max(wait, prefills), max(stretch, turns), list(map(max, waits, longer))
    return batches, stretch, waits


def _busy(loads: list[ModelLoad], batches: list[float], times: list[Times]) -> list[float]:
    """The part of the time in which each model has a decode step to do."""
    return [
        min(batch, load.rate * load.output * decode) / batch
        for load, batch, (_, decode, _) in zip(loads, batches, times, strict=True)
    ]


def _turns(
    busy: list[float], times: list[Times], shares: Sequence[int], limits: tuple[float, float]
) -> float:
    """The stretch at these batches: smaller ones decode for more of the time, and nearer the bandwidth."""
    booked = sum(part * share for part, share in zip(busy, shares, strict=True))
    speeds = sum(part * speed for part, (_, _, speed) in zip(busy, times, strict=True))
    return max(1.0, booked / limits[0], speeds / limits[1])


def _waits(busy: list[float], times: list[Times], shares: Sequence[int], limit: float) -> list[float]:
    """Seconds each model waits between two steps for those that do not fit beside it.

    They step once meanwhile, at best packed: not in less than the longest of them, than all that want more
    than half of the device one after another, or than their share-seconds.
    """
    found = []
    for i, own in enumerate(shares):
        longest = single = area = 0.0
        for j, share in enumerate(shares):
            if j != i and own + share > limit:
                seconds = busy[j] * times[j][1]
                longest, area = max(longest, seconds), area + seconds * share / limit
                single += seconds if 2 * share > limit else 0.0
        found.append(max(longest, single, area))
    return found


def _squeezed(batches: list[float], sequences: list[int], pool: int) -> list[float]:
    """Smaller by one factor until K and V fit, none below 1."""
    for _ in batches:
        asked = sum(b * s for b, s in zip(batches, sequences, strict=True))
        if asked <= pool:
            break
        floor = sum(s for b, s in zip(batches, sequences, strict=True) if b <= 1.0)
        if asked - floor <= 0:
            break
        factor = max(0.0, (pool - floor) / (asked - floor))
        batches = [max(1.0, b * factor) if b > 1.0 else b for b in batches]
    return [min(b, MOST) for b in batches]
