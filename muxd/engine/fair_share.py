"""What is a fair part of the pool for each model, by what is seen of its load. Called by ``engine.quota``.

Pure: no clock, no I/O; times are seconds, passed in.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import ceil

from msgspec import Struct

from muxd.engine.ewma import Average, FadingSum

# The most by which a model is expected to outgrow what it holds, from its arrivals alone.
_MOST_GROWTH = 2.0

# A model needs what it holds and waits for on average, and so many standard deviations: what makes its peaks.
# By the average alone a bursty model would have given away what it wants back at every burst.
_PEAK = 2.0


class Demand(Struct, frozen=True):
    """What is seen of one model when quotas move. Blocks are head blocks."""

    held: int
    waiting_blocks: int  # that sequences without rows would need at admission
    oldest: float  # seconds the head of the queue has waited since it came, if for rows; 0: not for rows
    head_blocks: int = 0  # that the head of the queue needs, of waiting_blocks
    ready: bool = True  # False while its worker comes back: what is seen then says nothing about its load

    @property
    def starved(self) -> bool:
        """It holds less than it would, so what it holds is no measure of its load."""
        return self.oldest > 0 or not self.ready or (self.held == 0 and self.waiting_blocks > 0)


class Claimant:
    """One model: its settings, its quota, and what is known of its load."""

    def __init__(
        self, model: str, min_blocks: int, max_blocks: int, weight: Fraction, least: int, memory: float
    ):
        self.model = model
        self.min_blocks = min_blocks
        self.max_blocks = max_blocks
        self.weight = weight
        self.least = least  # head blocks that a sequence cannot do without
        self.quota = self.goal = min_blocks
        self.gained = self.gave = -(2**62)  # the last adaptation that did
        # seen at the last adaptation
        self.seen = False  # and its worker was ready
        self.starved = False
        self.held = self.head = self.waiting = 0
        self.need = 0  # blocks it would hold, in its busy moments, if nobody stood in its way
        self.claim = 0  # blocks of them that are fair
        self.floor = 0  # blocks of them that the head of its queue cannot do without
        # over time
        self.arrivals = FadingSum(memory)  # blocks
        self.backlog = FadingSum(memory)  # growth of waiting_blocks
        self.use = Average(memory)  # held
        self.wanted = Average(memory)  # held and waiting
        self.age = Average(memory)  # oldest

    @property
    def in_use(self) -> int:
        """Of its quota."""
        return min(self.held, self.quota)

    @property
    def most(self) -> int:
        """Its claim's ceiling: what it needs. A starved model is never read as low use."""
        if not self.seen:
            return self.quota
        if self.starved:
            return self.max_blocks
        return max(self.min_blocks, min(self.max_blocks, self.need))

    @property
    def missing(self) -> int:
        """Blocks its quota lacks of what it needs and may fairly claim."""
        return min(self.need, self.claim) - self.quota

    def observe(self, demand: Demand | None, now: float, elapsed: float) -> None:
        self.seen = demand is not None and demand.ready
        if demand is None:
            self.starved = False
            return
        self.starved = demand.starved
        self.held, self.head = demand.held, demand.head_blocks
        if not demand.ready:
            return
        wanted = min(demand.held + demand.waiting_blocks, self.max_blocks)  # what can never be is no memory
        self.backlog.add(demand.waiting_blocks - self.waiting, now)
        self.waiting = demand.waiting_blocks
        self.use.add(demand.held, elapsed)
        self.wanted.add(wanted, elapsed)
        self.age.add(demand.oldest, elapsed)
        usual = self.wanted.value + _PEAK * self.wanted.deviation
        self.need = max(wanted, self.head, ceil(min(usual, self.max_blocks)), ceil(self._expected(now)))

    def _expected(self, now: float) -> float:
        """Blocks it will hold when what arrives is admitted as it comes (Little's law).

        Held over admitted blocks a second is how long a block is kept; times the arrivals that is
        ``use · arrivals / admitted``. Admitted is what arrived and did not add to the backlog.
        """
        arrivals = self.arrivals.at(now)
        admitted = max(arrivals - self.backlog.at(now), arrivals / _MOST_GROWTH)
        return self.use.value * arrivals / admitted if admitted > 0 else 0.0


def divide_fairly(total: int, models: Sequence[Claimant]) -> None:
    """Set every claim: weighted max-min fair division of the pool by need. Nobody claims more than it needs,
    and who needs more than the others leave gets its weight's part of what is not guaranteed.

    A starved model could use anything, so its claim is not below its weight's part; nor below the first
    request of its queue, oldest queue first: else a request longer than that part would wait for ever.
    """
    left = total - sum(m.min_blocks for m in models)
    for model in sorted(models, key=lambda m: -m.age.value):
        model.floor = 0
        floor = min(model.max_blocks, max(model.head, model.least))
        if model.seen and model.starved and floor <= model.min_blocks + left:
            left -= max(0, floor - model.min_blocks)
            model.floor = floor
    fixed: list[Claimant] = []
    while True:  # at most once per starved model: those whose part is too small get the floor instead
        rest = [m for m in models if m not in fixed]
        for model, part in zip(rest, divide(total, rest, lambda m: m.most), strict=True):
            model.claim = part
        short = [m for m in rest if m.claim < m.floor]
        if not short:
            return
        for model in short:
            model.claim = model.floor
            total -= model.floor
        fixed += short


def divide(total: int, models: Sequence[Claimant], ceiling: Callable[[Claimant], int]) -> list[int]:
    """Guarantees, and by weight what they leave, up to ``ceiling``."""
    rooms = [ceiling(m) - m.min_blocks for m in models]
    spare = total - sum(m.min_blocks for m in models)
    more = pour(spare, rooms, [m.weight for m in models])
    return [m.min_blocks + n for m, n in zip(models, more, strict=True)]


def pour(amount: int, rooms: Sequence[int], weights: Sequence[Fraction]) -> list[int]:
    """Divide ``amount`` in proportion to ``weights``, nobody getting more than its room (water-filling).

    Exact: what is divided is min(amount, the rooms of those with a weight above 0), nothing if negative; who
    is not full gets its proportion rounded up or down.
    """
    got = [0] * len(rooms)
    order = sorted((i for i, w in enumerate(weights) if w > 0), key=lambda i: rooms[i] / weights[i])
    weight = sum((weights[i] for i in order), start=Fraction(0))
    amount = max(0, amount)
    full = 0
    for i in order:
        if rooms[i] * weight > amount * weights[i]:
            break  # nor is anybody after it filled
        got[i] = rooms[i]
        amount -= rooms[i]
        weight -= weights[i]
        full += 1
    poured, upto = 0, Fraction(0)
    for i in order[full:]:  # differences of a rounded running sum: they add up
        upto += weights[i]
        got[i] = amount * upto // weight - poured
        poured += got[i]
    return got
