"""The published system's own arithmetic: MuxServe's throughput estimator as its released code computes it.

Kept apart from ``estimator.py`` because its only purpose is comparison: with it the greedy search must find
the published grouping of the ChatLMSYS workload, and any other search can be judged by the same objective.
Every constant and every oddity below is the released code's (hao-ai-lab/MuxServe, muxsched/placement.py):

* a batch is rounded up to the next profiled one, without interpolation;
* decode seconds are a mean over sequence lengths of running means;
* lengths are ShareGPT's, 161 in and 337 out, whatever the workload says;
* a unit that starts with every batch at its cap is worth nothing.

Memory is in "GB" as used there: 10^9 for weights, 2^30 for K and V.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import inf, isnan

from msgspec import Struct

from muxd.cost.published import Published
from muxd.errors import ConfigError
from muxd.placement.problem import Member, Mesh, Problem, Unit

PROMPT, OUTPUT = 161, 337
OVERBOOK = 20
_MEMORY = 80.0
_ACTIVATION, _PROCESSES = 6.0, 1.6
_PLACEABLE = 0.9 * (1 - 0.4)  # of the memory: the default that is always used
_HIGHEST_SHARE, _PREFILL_SHARE = 90, 100


class Size(Struct, frozen=True):
    """``overhead``: seconds of scheduling a sequence and decode step; ``scale``: compute against 7B."""

    weights: float
    layers: int
    hidden: int
    least_gpus: int
    scale: int
    overhead: float

    @property
    def kv_token(self) -> float:
        return self.layers * self.hidden * 2 * 2 / 1024**3


SIZES = {
    "llama-7b": Size(14, 32, 4096, 1, 1, 1e-4),
    "llama-13b": Size(26, 40, 5120, 1, 2, 8e-5),
    "llama-30b": Size(60, 60, 6656, 2, 4, 7e-5),
    "llama-65b": Size(130, 80, 8192, 4, 8, 7e-5),
}

Steps = tuple[list[int], list[float]]  # batches ascending, seconds


class Released:
    """``Appraiser`` for models whose ``cost`` is one of ``SIZES``. Raises ConfigError for others."""

    def __init__(self, problem: Problem, table: Published):
        known = [name for name in SIZES if name in table.models()]
        for model in problem.models:
            if model.cost not in known:
                raise ConfigError(
                    f"{model.name}: the released estimator knows {', '.join(known) or 'no model'}, "
                    f"not {model.cost!r}"
                )
        self.problem = problem
        self._table = table
        self._sizes = [SIZES[model.cost] for model in problem.models]
        self._rates = [model.rate for model in problem.models]
        occupied = sum(size.weights + _ACTIVATION for size in self._sizes)
        # Taken for the part that K and V have, though it is what weights and activations take.
        self._kv_part = occupied / (_MEMORY * problem.gpus.count)
        self._steps: dict[tuple[str, int, int, bool], Steps] = {}
        self._values: dict[tuple[int, tuple[int, ...], tuple[int, ...]], float] = {}
        self._candidates: dict[tuple[str, float, int], int | None] = {}

    # ---- the interface of searches -------------------------------------------------------------------

    def degrees(self, model: int) -> tuple[int, ...]:
        least, known = self._sizes[model].least_gpus, self._table.degrees(self.problem.models[model].cost)
        return tuple(gpus for gpus in known if gpus >= least)

    def demand(self, model: int) -> tuple[float, float]:
        scale = self._sizes[model].scale
        return self._rates[model] * scale, scale

    def shares(self, gpus: int, models: Sequence[int]) -> tuple[int, ...] | None:
        """Algorithm 2, of each alone: the first share that meets the rate, else the best throughput's."""
        found = [self._known_candidate(model, gpus) for model in models]
        known = tuple(share for share in found if share is not None)
        return known if len(known) == len(found) else None

    def _known_candidate(self, model: int, gpus: int) -> int | None:
        key = (self.problem.models[model].cost, self._rates[model], gpus)
        if key not in self._candidates:
            self._candidates[key] = self._candidate(model, gpus) if gpus in self.degrees(model) else None
        return self._candidates[key]

    def _rungs(self, model: int, gpus: int) -> tuple[int, ...]:
        shares = self._table.shares(self.problem.models[model].cost, gpus)
        return tuple(share for share in shares if share <= _HIGHEST_SHARE)

    def fits(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> bool:
        if any(gpus not in self.degrees(model) for model in models):
            return False
        # The last one placed need not leave room for its own activations.
        needed = sum(self._sizes[model].weights for model in models)
        needed += max(0, len(models) - 1) * (_ACTIVATION + _PROCESSES)
        return needed <= _PLACEABLE * _MEMORY * gpus and sum(shares) <= 100 + OVERBOOK

    def room(self, gpus: int, models: Sequence[int]) -> float:
        taken = sum(self._sizes[model].weights + _ACTIVATION + _PROCESSES for model in models)
        return _PLACEABLE * _MEMORY * gpus - taken

    def value(self, gpus: int, models: Sequence[int], shares: Sequence[int]) -> float:
        """Rates times throughputs, not capped by the rates."""
        key = (gpus, tuple(models), tuple(shares))
        if key not in self._values:
            self._values[key] = _Growth(self, gpus, key[1], key[2]).best if models else 0.0
        return self._values[key]

    @property
    def bound(self) -> float:
        """Throughputs have no bound."""
        return inf

    def objective(self, total: float) -> float:
        """The mean of throughputs, weighted by rate: 10.646 for the published plan of ChatLMSYS."""
        return total / self.problem.rate

    def unit(self, mesh: Mesh, devices: tuple[int, ...]) -> Unit:
        grown = _Growth(self, mesh.gpus, mesh.models, mesh.shares)
        members = []
        pool = self.kv_room(mesh.gpus, mesh.models)
        shared = sum(self._rates[m] * self._sizes[m].kv_token for m in mesh.models)
        used = 0.0
        for i, model in enumerate(mesh.models):
            load, throughput = self.problem.models[model], grown.best_throughputs[i]
            prefill, decode = grown.seconds(i, grown.best_batches[i])
            batch = grown.best_batches[i]
            used += min(load.rate, throughput) / batch * (prefill + OUTPUT * decode * mesh.shares[i] / 100)
            late = load.rate > throughput
            members.append(
                Member(
                    model=load.name,
                    prefill_share=_PREFILL_SHARE,
                    decode_share=mesh.shares[i],
                    batch=batch,
                    weight=load.rate * self._sizes[model].kv_token / shared,
                    rate=load.rate,
                    throughput=throughput,
                    ttft=None if late else grown.prefills(grown.best_batches),
                    tpot=decode + grown.prefills(grown.best_batches) / OUTPUT,
                )
            )
        return Unit(mesh.host, devices, tuple(members), int(pool / mesh.gpus * 1e9), used)

    # ---- the cost table ------------------------------------------------------------------------------

    def steps(self, model: int, gpus: int, share: int, prefill: bool) -> Steps:
        """Seconds by batch at the mean length."""
        name = self.problem.models[model].cost
        key = (name, gpus, share, prefill)
        if key not in self._steps:
            cells = self._table.cells(name, gpus, "prefill" if prefill else "decode")
            rows = cells.raw[cells.shares.index(share)].tolist()
            found = [_at_mean_length(cells.contexts, row, prefill) for row in rows]
            known = [(b, t) for b, t in zip(cells.rows, found, strict=True) if t is not None]
            self._steps[key] = [batch for batch, _ in known], [seconds for _, seconds in known]
        return self._steps[key]

    def rate(self, model: int) -> float:
        return self._rates[model]

    def overhead(self, model: int) -> float:
        return self._sizes[model].overhead

    def kv_room(self, gpus: int, models: Sequence[int]) -> float:
        """GB for K and V on the whole mesh."""
        taken = sum(self._sizes[model].weights for model in models) + len(models) * _ACTIVATION
        return max(0.0, _MEMORY * gpus * 0.98 - taken)

    def kv_parts(self, gpus: int, models: Sequence[int]) -> list[float]:
        """GB of each model: in proportion to rate and size of a token."""
        claims = [self._sizes[model].kv_token * self._rates[model] for model in models]
        total, room = sum(claims), self.kv_room(gpus, models)
        return [
            self._rates[model] * self._sizes[model].kv_token / total * room for model in models
        ]  # the order of factors is the released code's: its last bits decide a tie

    def most(self, model: int, gpus: int, share: int, room: float) -> float:
        """The largest batch: by memory and by what was profiled."""
        sequence = self._sizes[model].kv_token * (OUTPUT + PROMPT)
        return min(room // sequence, max(self.steps(model, gpus, share, False)[0]))

    # ---- one model alone -----------------------------------------------------------------------------

    def alone(self, model: int, gpus: int, share: int, room: float) -> tuple[bool, float, int]:
        """Whether the rate is met, the throughput, and the batch, by bisection."""
        low, high = 1.0, float(max(2, self.most(model, gpus, share, room)))
        rate, throughput, batch = self._rates[model], 0.0, 0.0
        decodes = self.steps(model, gpus, share, False)
        prefills = self.steps(model, gpus, _PREFILL_SHARE, True)
        while high - low >= 1:
            batch = (low + high) / 2
            prefill, decode = latency(batch, prefills, decodes, self.overhead(model))
            throughput = batch / (decode * OUTPUT + prefill)
            if throughput >= rate:
                high = batch
            else:
                low = batch
        met = near(throughput) > rate
        return met, rate if met else throughput, int(batch)

    def _candidate(self, model: int, gpus: int) -> int | None:
        best, chosen = 0.0, None
        room = self._kv_part * _MEMORY * gpus
        for share in self._rungs(model, gpus):
            met, throughput, _ = self.alone(model, gpus, share, room)
            if met:
                return share
            if throughput > best:
                best, chosen = throughput, share
        return chosen


def near(throughput: float) -> float:
    """A rate below this counts as met."""
    return throughput + min(0.5, throughput * 0.1)


def latency(batch: float, prefills: Steps, decodes: Steps, overhead: float) -> tuple[float, float]:
    """Seconds of a prefill of the batch and of one decode step, overhead of scheduling included."""
    at = bisect_left(decodes[0], batch)
    prefill, decode = prefills[1][min(at, len(prefills[1]) - 1)], decodes[1][min(at, len(decodes[1]) - 1)]
    return prefill, decode + overhead * batch


def _at_mean_length(lengths: list[int], raw: list[float], prefill: bool) -> float | None:
    """Lengths up to the first above the mean: prefill its last, decode the mean of running means."""
    limit = PROMPT if prefill else OUTPUT
    known, seconds = [], []
    for length, cell in zip(lengths, raw, strict=True):
        if isnan(cell):
            continue
        # Back to the milliseconds of the file, whose last bits decide ties.
        known.append(round(cell * 1000, 6))
        seconds.append((known[-1] if prefill else sum(known) / len(known)) / 1000)
        if length > limit:
            break
    if not seconds:
        return None
    return seconds[-1] if prefill else sum(seconds) / len(seconds)


class _Growth:
    """The batches of one unit: each starts as if alone, then the least served grows, one at a time.

    ``best`` is the largest sum of rate times throughput on the way. Throughput is batch over (all prefills
    plus own decode steps): equation 3 of the paper.
    """

    def __init__(self, released: Released, gpus: int, models: tuple[int, ...], shares: tuple[int, ...]):
        self._models, self._rates = models, [released.rate(model) for model in models]
        self._overheads = [released.overhead(model) for model in models]
        self._prefills = [released.steps(model, gpus, _PREFILL_SHARE, True) for model in models]
        self._decodes = [released.steps(m, gpus, s, False) for m, s in zip(models, shares, strict=True)]
        parts = released.kv_parts(gpus, models)
        each = list(zip(models, shares, parts, strict=True))
        self._caps = [released.most(model, gpus, share, part) for model, share, part in each]
        self._batches = [released.alone(model, gpus, share, part)[2] for model, share, part in each]
        self.best, self.best_batches = 0.0, list(self._batches)
        self.best_throughputs = [0.0] * len(models)
        self._grow()

    def seconds(self, i: int, batch: int) -> tuple[float, float]:
        return latency(batch, self._prefills[i], self._decodes[i], self._overheads[i])

    def prefills(self, batches: list[int]) -> float:
        return sum(self.seconds(i, batch)[0] for i, batch in enumerate(batches))

    def _grow(self) -> None:
        batches, caps, rates = self._batches, self._caps, self._rates
        seconds = [self.seconds(i, batch) for i, batch in enumerate(batches)]
        while any(batch < cap for batch, cap in zip(batches, caps, strict=True)):
            prefills = sum(prefill for prefill, _ in seconds)
            served = [
                batch / (decode * OUTPUT + prefills)
                for batch, (_, decode) in zip(batches, seconds, strict=True)
            ]
            total = sum(throughput * rate for throughput, rate in zip(served, rates, strict=True))
            if total > self.best:
                self.best, self.best_batches, self.best_throughputs = total, list(batches), served
            least = self._least_served(served)
            if least is None:
                break
            batches[least] += 1
            seconds[least] = self.seconds(least, batches[least])

    def _least_served(self, served: list[float]) -> int | None:
        least, lowest = None, 100.0
        for i, (throughput, rate) in enumerate(zip(served, self._rates, strict=True)):
            if near(throughput) < rate and self._batches[i] < self._caps[i] and throughput / rate < lowest:
                least, lowest = i, throughput / rate
        return least
