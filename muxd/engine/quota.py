"""Whose head blocks they are when everybody wants them: every model's quota, moved to where the work is.

Pure: no clock, no I/O; times are seconds, passed in. The ledger keeps ``min`` and ``max`` (``pool.ledger``);
a quota lies between them and says who may take blocks back from whom. ``design.md`` tells the rules.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import isfinite

from msgspec import Struct

from muxd.engine.fair_share import Claimant, Demand, divide, divide_fairly, pour
from muxd.errors import ConfigError

__all__ = ["Demand", "Move", "Quotas"]

# A queue is a reason to move quotas once its head has waited this part of a period, on average.
_PATIENCE = 1 / 16


class Move(Struct, frozen=True):
    """A quota that has changed, in head blocks."""

    model: str
    before: int
    after: int
    reason: str


class Quotas:
    """The quotas of one pool. Always min <= quota <= max, and their sum is ``total_blocks`` (or all ceilings
    together, if that is less).

    period: seconds between two ``adapt``; start: the time now.
    memory: seconds after which an observation counts 1/e; two periods unless told.
    dead_band: quotas move in grains of this part of the models' mean quota, never by less.
    step: at most this part of the pool moves at a time.
    calm: a model that gained gives nothing in the next ``calm`` adaptations, one that gave gains nothing.
    """

    def __init__(
        self,
        total_blocks: int,
        period: float,
        *,
        start: float = 0.0,
        memory: float | None = None,
        dead_band: float = 0.1,
        step: float = 0.25,
        calm: int = 2,
    ):
        if not (isfinite(period) and period > 0):
            raise ConfigError(f"scheduler.adapt_period: {period} seconds; it must be above 0")
        self.total_blocks = total_blocks
        self.period = period
        self.calm = calm
        self._memory = 2 * period if memory is None else memory
        self._dead_band = dead_band
        self._step = step
        self._entries: dict[str, Claimant] = {}
        self._round = 0
        self._adapted = start
        self._due = start + period

    # ---- models -------------------------------------------------------------------------------------

    def add(self, model: str, min_blocks: int, max_blocks: int, weight: float, least: int) -> None:
        """A model more, at once with its weight's part of what is not guaranteed. ``least``: head blocks that
        a sequence of it cannot do without.

        Raises ConfigError, changing nothing, when it is known already or the settings cannot hold.
        """
        if model in self._entries:
            raise ConfigError(f"model {model} has a quota already")
        if least < 1:
            raise ConfigError(f"model {model}: a row of {least} blocks")
        self._check(model, min_blocks, max_blocks, weight)
        learnt = self._learnt()
        self._entries[model] = Claimant(model, min_blocks, max_blocks, Fraction(weight), least, self._memory)
        self._divide_anew(learnt)

    def remove(self, model: str) -> None:
        """Its quota goes to the others. Raises KeyError."""
        learnt = self._learnt()
        del self._entries[model]
        self._divide_anew(learnt)

    def set(self, model: str, min_blocks: int, max_blocks: int, weight: float) -> None:
        """Raises KeyError, and ConfigError, changing nothing, when the settings cannot hold."""
        entry = self._entries[model]
        self._check(model, min_blocks, max_blocks, weight)
        learnt = self._learnt()
        entry.min_blocks, entry.max_blocks, entry.weight = min_blocks, max_blocks, Fraction(weight)
        self._divide_anew(learnt)

    def take_up(self, quotas: Mapping[str, int]) -> None:
        """Quotas that were learnt before, of some models, as far as they fit beside each other now. All of
        ``quotas()`` under the same settings are those again."""
        entries = list(self._entries.values())
        plain = divide(self.total_blocks, entries, lambda e: e.max_blocks)
        known = [(e, part) for e, part in zip(entries, plain, strict=True) if e.model in quotas]
        self._divide_anew({e: quotas[e.model] - part for e, part in known})

    # ---- questions ----------------------------------------------------------------------------------

    def quota(self, model: str) -> int:
        """Head blocks nobody takes from the model while it uses them."""
        return self._entries[model].quota

    def quotas(self) -> dict[str, int]:
        return {name: entry.quota for name, entry in self._entries.items()}

    def goal(self, model: str) -> int:
        """Where the quota is going: as soon as those who give have less in use; else the quota.

        Nobody is preempted because a quota moves: the giver's running sequences end, and no new ones replace
        them. The goals together fit the pool like the quotas.
        """
        return self._entries[model].goal

    def growing(self, model: str, held: int) -> bool:
        """Its quota is on the way to a goal it does not hold yet. While its queue waits nobody may borrow,
        or the giver would fill again what it is to give, and a request longer than what ends at a time would
        never find its blocks together."""
        entry = self._entries[model]
        return entry.goal > entry.quota and held < entry.goal

    def over(self, model: str, held: int) -> int:
        """Blocks beyond its quota: what others may take back."""
        return max(0, held - self._entries[model].quota)

    # ---- moving -------------------------------------------------------------------------------------

    def arrived(self, model: str, blocks: int, now: float) -> None:
        """A request that needs ``blocks`` at admission (prompt and look-ahead) has joined the queue. O(1)."""
        self._entries[model].arrivals.add(blocks, now)

    def due(self, now: float) -> bool:
        return now >= self._due

    def next_due(self) -> float:
        return self._due

    def adapt(self, demands: Mapping[str, Demand], now: float) -> list[Move]:
        """Look at every model and move quotas. A model without a demand stands still.

        Takers wait for rows and need more than their quota; givers are above their claim. A giver's quota
        never falls below its guarantee, its claim, or what is held of it.
        """
        elapsed = max(0.0, now - self._adapted)
        self._adapted, self._due = now, now + self.period
        self._round += 1
        before = self.quotas()
        entries = list(self._entries.values())
        for entry in entries:
            entry.observe(demands.get(entry.model), now, elapsed)
        divide_fairly(self.total_blocks, entries)
        budget = max(self._grain, int(self._step * self.total_blocks))
        moved = self._keep_promises(entries, budget)
        takers = {e: e.missing for e in entries if self._may_gain(e)}
        givers = {e: e.quota - e.claim for e in entries if self._may_give(e)}
        unused = {e: min(n, e.quota - e.in_use) for e, n in givers.items()}
        # The dead band spares small gains; it must not keep a request from its last blocks.
        grain = 1 if any(e.quota < e.floor for e in takers) else self._grain
        change = self._shift(_transfer(takers, unused, budget - moved, grain))
        self._promise(takers, givers, change, budget, grain)
        return [_explain(e, before[e.model]) for e in entries if e.quota != before[e.model]]

    @property
    def _grain(self) -> int:
        return max(1, int(self._dead_band * self.total_blocks / max(1, len(self._entries))))

    def _may_gain(self, entry: Claimant) -> bool:
        return (
            entry.seen
            and entry.waiting > 0
            and entry.age.value >= _PATIENCE * self.period
            and entry.missing > 0
            and self._round > entry.gave + self.calm
        )

    def _may_give(self, entry: Claimant) -> bool:
        return entry.seen and entry.claim < entry.quota and self._round > entry.gained + self.calm

    def _shift(self, change: dict[Claimant, int]) -> dict[Claimant, int]:
        for entry, by in change.items():
            entry.quota += by
            if by > 0:
                entry.gained = self._round
            elif by < 0:
                entry.gave = self._round
        return change

    def _promise(
        self,
        takers: dict[Claimant, int],
        givers: dict[Claimant, int],
        change: dict[Claimant, int],
        budget: int,
        grain: int,
    ) -> None:
        """Goals: what those give who wait themselves, with more than their part in use, moves when their
        sequences end. (Others have no more in use than they claim.)"""
        for entry in self._entries.values():
            entry.goal = entry.quota
        missing = {e: n - change[e] for e, n in takers.items()}
        held = {e: n + change[e] for e, n in givers.items() if e.starved}
        for entry, by in _transfer(missing, held, budget, grain).items():
            entry.goal += by

    def _keep_promises(self, entries: list[Claimant], budget: int) -> int:
        """Who has taken of what it was promised gets it, though it waits no more: else what it was admitted
        with by right would now be borrowed."""
        seen = [e for e in entries if e.seen]
        takers = {e: e.goal - e.quota for e in seen if e.quota < min(e.goal, e.held)}
        givers = {e: e.quota - max(e.goal, e.in_use) for e in seen if e.quota > max(e.goal, e.in_use)}
        change = self._shift(_transfer(takers, givers, budget, grain=1))
        return sum(by for by in change.values() if by > 0)

    # ---- settings -----------------------------------------------------------------------------------

    def _check(self, model: str, min_blocks: int, max_blocks: int, weight: float) -> None:
        if not (isfinite(weight) and weight > 0):
            raise ConfigError(f"quota of model {model}: weight {weight}; it must be a number above 0")
        if not 0 <= min_blocks <= max_blocks <= self.total_blocks:
            raise ConfigError(
                f"quota of model {model}: min {min_blocks}, max {max_blocks} blocks; "
                f"needs 0 <= min <= max <= {self.total_blocks} (the pool)"
            )
        others = sum(e.min_blocks for e in self._entries.values() if e.model != model)
        if others + min_blocks > self.total_blocks:
            raise ConfigError(
                f"quota of model {model}: min {min_blocks} blocks and those of the others, {others}, are "
                f"more than the pool's {self.total_blocks}: lower a quota.min or raise pool.bytes"
            )

    def _learnt(self) -> dict[Claimant, int]:
        """By how much each quota differs from the division by weight alone."""
        entries = list(self._entries.values())
        plain = divide(self.total_blocks, entries, lambda e: e.max_blocks)
        return {e: e.quota - part for e, part in zip(entries, plain, strict=True)}

    def _divide_anew(self, learnt: dict[Claimant, int]) -> None:
        """By weight, then what has been learnt on top, as far as it still fits."""
        entries = list(self._entries.values())
        plain = divide(self.total_blocks, entries, lambda e: e.max_blocks)
        for entry, part in zip(entries, plain, strict=True):
            quota = part + learnt.get(entry, 0)
            entry.quota = max(entry.min_blocks, min(entry.max_blocks, quota))
        surplus = sum(e.quota for e in entries) - sum(plain)
        above = [e.quota - e.min_blocks for e in entries]
        less = pour(surplus, above, [Fraction(n) for n in above])
        more = pour(-surplus, [e.max_blocks - e.quota for e in entries], [e.weight for e in entries])
        for entry, minus, plus in zip(entries, less, more, strict=True):
            entry.quota += plus - minus
            entry.goal = entry.quota


def _transfer(
    takers: dict[Claimant, int], givers: dict[Claimant, int], budget: int, grain: int
) -> dict[Claimant, int]:
    """Blocks to add to each quota, in whole grains: to the takers by weighted queue age, up to what they
    miss; from the givers in proportion to what they have to give."""
    want = [n // grain for n in takers.values()]
    have = [n // grain for n in givers.values()]
    grains = min(sum(want), sum(have), budget // grain)
    gains = pour(grains, want, [e.weight * Fraction(e.age.value) for e in takers])
    losses = pour(grains, have, [Fraction(n) for n in have])
    change = {e: n * grain for e, n in zip(takers, gains, strict=True)}
    return change | {e: -n * grain for e, n in zip(givers, losses, strict=True)}


def _explain(entry: Claimant, before: int) -> Move:
    if entry.quota > before:
        reason = f"needs {entry.need} blocks, its queue waits for rows, on average {entry.age.value:.1f} s"
    elif entry.starved:
        reason = f"its part beside the others that wait is {entry.claim} blocks"
    else:
        reason = f"needs {entry.need} of {before} blocks"
    return Move(entry.model, before, entry.quota, reason)
