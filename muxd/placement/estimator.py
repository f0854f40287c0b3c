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

Shares are the scheduler's (``muxd.cost.shares``): equal parts, what idle models leave of theirs besides, and
for a prefill what leaves one model's part.

The denominator is also the mean seconds of an answer: its own steps, and every model's prefills that come
while it lasts. The first token comes earlier than a whole round of prefills: after its own, and what of the
others' is before it, as at a queue (Pollaczek and Khinchine, lengths spread as an exponential's).

A unit is worth what it serves on time (``promises``).
"""

from collections.abc import Sequence
from math import inf

from msgspec import Struct

from muxd.cost.estimate import Costs
from muxd.cost.shares import equal_part, prefill_part
from muxd.placement import memory, promises
from muxd.placement.curves import MOST, Curve, Curves, between
from muxd.placement.memory import Budget
from muxd.placement.problem import Member, Mesh, ModelLoad, Problem, Unit, check

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
    firsts: list[float]  # seconds to the first token

    @property
    def round(self) -> float:
        """Seconds of one prefill of every model."""
        return sum(self.prefills)


class Estimator:
    """``Appraiser`` over ``costs``. Raises ConfigError for models the costs do not know, and for memory that
    cannot hold them in any plan. ``rungs``: the shares a batch may have on the devices, else those that all
    models have costs for."""

    def __init__(
        self, problem: Problem, costs: Costs, budget: Budget | None = None, rungs: Sequence[int] = ()
    ):
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
        self.rungs = tuple(rungs) or self._common_rungs()
        self._alone = [self._answer(model) for model in range(len(problem.models))]
        self._values: dict[tuple[int, tuple[int, ...], tuple[int, ...]], float] = {}

    # ---- the interface of searches -------------------------------------------------------------------

    def degrees(self, model: int) -> tuple[int, ...]:
        return self._degrees[model]

    def demand(self, model: int) -> tuple[float, float]:
        """Operations a second: 2 a parameter that a token is computed with. And the parameters."""
        load = self.problem.models[model]
        active = load.shape.active_parameters
        return 2.0 * active * load.rate * (load.prompt + load.output), load.shape.parameters

    def shares(self, gpus: int, models: Sequence[int]) -> tuple[int, ...] | None:
        """Equal parts, as the scheduler gives them."""
        if any(gpus not in self._degrees[model] for model in models):
            return None
        return (equal_part(len(models), self.rungs),) * len(models)

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

    @property
    def bound(self) -> float:
        return promises.most(self.problem.models)

    def objective(self, total: float) -> float:
        """Requests a second that are on time (times weights), and up to one percent of them for speed."""
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
        ahead = prefill_part(len(loads), self.rungs)
        curves = [self._curve(load, gpus, share, ahead) for load, share in zip(loads, shares, strict=True)]
        batches, stretch, turns = _fixed_point(loads, curves, shares, self._limits)
        if lent := self._lent(gpus, loads, curves, batches, shares):
            curves = lent
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
        return Load(
            batches,
            [prefill for prefill, _, _ in times],
            [decode for _, decode, _ in times],
            stretch,
            steps,
            throughputs,
            _firsts(loads, curves, batches, times),
        )

    def _lent(
        self,
        gpus: int,
        loads: list[ModelLoad],
        curves: list[Curve],
        batches: list[float],
        shares: Sequence[int],
    ) -> list[Curve]:
        """What models have where others leave their parts to them for some of the time; empty if nobody does.

        A model has the device with those that are busy: a share between the rungs, part of the time the lower
        one and part of it the higher.
        """
        times = [curve.at(batch) for curve, batch in zip(curves, batches, strict=True)]
        busy = _busy(loads, batches, times)
        every, found, more = sum(busy), [], False
        ahead = prefill_part(len(loads), self.rungs)
        for i, (load, curve, own) in enumerate(zip(loads, curves, shares, strict=True)):
            share = 100 / (1.0 + every - busy[i])
            if share > own * (1 + _CLOSE):
                curve, more = self._at_share(load, gpus, share, curve, own, ahead), True
            found.append(curve)
        return found if more else []

    def _at_share(
        self, load: ModelLoad, gpus: int, share: float, curve: Curve, own: int, ahead: int
    ) -> Curve:
        """Between rungs; ``curve``: at its ``own``, the least it can have. ``ahead``: the least of a prefill,
        which has what is free, too."""
        lower = max((rung for rung in self.rungs if own <= rung <= share), default=own)
        higher = next((rung for rung in self.rungs if rung > lower), lower)
        below = curve if lower == own else self._curve(load, gpus, lower, max(lower, ahead))
        if higher == lower:
            return below
        above = self._curve(load, gpus, higher, max(higher, ahead))
        return between(below, above, (share - lower) / (higher - lower))

    def _curve(self, load: ModelLoad, gpus: int, share: int, prefill_share: int) -> Curve:
        return self._curves.get(load.cost, gpus, share, load.prompt, load.output, prefill_share)

    def _answer(self, model: int) -> float:
        """Seconds of one request that has the fewest devices which can hold the model, for itself."""
        load, degrees = self.problem.models[model], self._degrees[model]
        least = next((g for g in degrees if self.fits(g, (model,), (100,))), degrees[-1])
        prefill, decode, _ = self._curve(load, least, 100, 100).at(1)
        return prefill + load.output * decode

    def _common_rungs(self) -> tuple[int, ...]:
        known = [
            set(self._costs.shares(model.cost, gpus))
            for model, degrees in zip(self.problem.models, self._degrees, strict=True)
            for gpus in degrees
        ]
        return tuple(sorted(set.intersection(*known) | {100}))

    def _value(self, gpus: int, models: tuple[int, ...], shares: tuple[int, ...]) -> float:
        load, total = self.load(gpus, models, shares), 0.0
        wait = load.round
        held = sum(b * self._sequence[m][gpus] for m, b in zip(models, load.batches, strict=True))
        full = held / (promises.HEADROOM * self.pool(gpus, models))
        for i, model in enumerate(models):
            wanted, alone = self.problem.models[model], self._alone[model]
            seconds = wait + wanted.output * load.steps[i]
            token = (seconds - load.firsts[i]) / wanted.output
            late = promises.lateness(wanted, load.firsts[i], token, seconds, alone)
            total += promises.worth(wanted, load.throughputs[i], max(late, full), alone / seconds)
        return total

    def _member(self, mesh: Mesh, load: Load, i: int, weight: float) -> Member:
        wanted, throughput = self.problem.models[mesh.models[i]], load.throughputs[i]
        late = throughput < wanted.rate * (1 - _CLOSE)
        first = load.firsts[i]
        return Member(
            model=wanted.name,
            prefill_share=prefill_part(len(mesh.models), self.rungs),
            decode_share=mesh.shares[i],
            batch=round(load.batches[i]),
            weight=weight,
            rate=wanted.rate,
            throughput=throughput if late else max(throughput, wanted.rate),
            ttft=None if late else first,
            tpot=load.steps[i] + (load.round - first) / wanted.output,
        )

    def _utilisation(self, mesh: Mesh, load: Load) -> float:
        """Share-seconds the rates ask for."""
        used, ahead = 0.0, prefill_part(len(mesh.models), self.rungs) / 100
        for i, model in enumerate(mesh.models):
            wanted = self.problem.models[model]
            decode = wanted.output * load.decodes[i] * mesh.shares[i] / 100
            used += wanted.rate / load.batches[i] * (load.prefills[i] * ahead + decode)
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


def _firsts(
    loads: list[ModelLoad], curves: list[Curve], batches: list[float], times: list[Times]
) -> list[float]:
    """Seconds to each model's first token: its own prefill behind those of others, at most a whole round."""
    own = [curve.at(1.0)[0] for curve in curves]
    every = sum(prefill for prefill, _, _ in times)
    busy = sum(
        load.rate * prefill / batch
        for load, batch, (prefill, _, _) in zip(loads, batches, times, strict=True)
    )
    if busy >= 1.0:
        return [every] * len(loads)
    wait = sum(load.rate * seconds**2 for load, seconds in zip(loads, own, strict=True)) / (1.0 - busy)
    return [min(max(every, seconds), wait + seconds) for seconds in own]


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
