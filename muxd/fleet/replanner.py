"""Measures how popular models are and, where it pays, brings them to other devices. Owns the plan over time.

``placement/replan.py`` decides, over rates measured online; this file asks it every ``period``, carries its
moves out one after another (``Roster.move``: nothing is dropped), and tells every decision with its numbers.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from msgspec import Struct

from muxd.clock import Clock
from muxd.config import PlacementConfig
from muxd.engine.popularity import Demand, Popularity
from muxd.errors import Busy, ConfigError, MuxdError, ShuttingDown
from muxd.fleet.catalog import Entry
from muxd.fleet.events import Events
from muxd.fleet.planning import Planning
from muxd.fleet.roster import Roster
from muxd.placement import live
from muxd.placement.live import Live, Pinned
from muxd.placement.replan import Decision, Policy, decide, propose, relabelled

_log = logging.getLogger("muxd.fleet")

_NOTHING = ("same", "small gain", "moves cost more")
_EAGER = 1e-9  # least_gain of a plan that somebody asked for


class Row(Struct, frozen=True):
    """One model of a proposal: where it is, where it should be, and what it is asked for."""

    model: str
    present: str
    proposed: str
    rate: float  # requests a second, measured
    prompt: float  # mean tokens
    output: float
    pinned: bool = False


class Proposal(Struct, frozen=True):
    """``gain``: requests a second more than now (times weights); ``cost``: requests not served while models
    move. ``reason`` is the decision's; ``moves`` are the models that would change their device."""

    rows: list[Row]
    adopt: bool
    reason: str
    gain: float
    cost: float
    moves: list[str]


class Replanner:
    """``run`` is its life; ``propose`` and ``now`` are for whoever asks."""

    def __init__(
        self,
        config: PlacementConfig,
        planning: Planning,
        roster: Roster,
        popularity: Popularity,
        events: Events,
        clock: Clock,
    ):
        self._config, self._planning, self._roster = config, planning, roster
        self._popularity, self._events, self._clock = popularity, events, clock
        self._adopted = clock.now() - config.cooldown
        self._told = ""  # the last decision or error, so that the same one is told once
        self._settled: dict[str, float] | None = None  # rates at which there was nothing to gain
        self._busy = asyncio.Lock()

    @property
    def _policy(self) -> Policy:
        config = self._config
        return Policy(
            least_gain=config.least_gain, horizon=config.horizon, cooldown=config.cooldown, steps=live.STEPS
        )

    async def run(self) -> None:
        """Every ``period``, until cancelled. What goes wrong is logged and tried again."""
        while True:
            await asyncio.sleep(self._config.period)
            if self._busy.locked() or not self._drifted():
                continue
            with suppress(ShuttingDown):
                try:
                    await self.now("at its time")
                except MuxdError as error:
                    if error.message != self._told:
                        _log.warning("no new plan: %s", error.message)
                    self._told = error.message

    def _drifted(self) -> bool:
        """Whether a search can find what the last one did not: it costs up to seconds of the interpreter."""
        now = self._clock.now()
        rates = {name: self._popularity.demand(name, now).rate for name in self._roster.entries}
        return self._settled is None or drifted(self._settled, rates, self._config.least_gain)

    async def propose(self, *, asked: bool = False) -> Proposal:
        """What would be done now; nothing is. ``asked``: an operator does, so neither the cooldown nor
        ``least_gain`` counts. Raises ConfigError where there is nothing to plan, or costs are not known."""
        entries = self._placed()
        now = self._clock.now()
        demands = {entry.name: self._popularity.demand(entry.name, now) for entry in entries}
        pins, places = self._planning.pins(entries), self._planning.now(entries)
        policy, since = self._policy, now - self._adopted
        if asked:
            policy = Policy(least_gain=_EAGER, horizon=policy.horizon, cooldown=0.0, steps=policy.steps)

        def search() -> tuple[Live, Decision, dict[str, int]]:
            appraiser = self._planning.appraiser(entries, demands)
            return appraiser, *decided(appraiser, places, pins, policy, since)

        _, decision, proposed = await asyncio.to_thread(search)
        rows = [
            _row(entry, demands[entry.name], self._planning.names[proposed[entry.name]], pins)
            for entry in entries
        ]
        moves = [row.model for row in rows if row.present != row.proposed]
        return Proposal(rows, decision.adopt, decision.reason, decision.gain, decision.cost, moves)

    async def now(self, why: str, *, asked: bool = False) -> Proposal:
        """Propose, and carry out what is adopted. Raises as ``propose``; a move that fails is told and ends
        it, what has moved stays."""
        async with self._busy:
            proposal = await self.propose(asked=asked)
            self._tell(proposal, why, asked)
            nothing = proposal.reason in _NOTHING
            self._settled = {row.model: row.rate for row in proposal.rows} if nothing else None
            if not proposal.adopt:
                return proposal
            self._adopted = self._clock.now()
            places = {row.model: row.proposed for row in proposal.rows}
            await self._carry_out({model: places[model] for model in proposal.moves}, proposal)
            return proposal

    async def _carry_out(self, moves: Mapping[str, str], proposal: Proposal) -> None:
        """Each until it fits: one may have to wait for another that leaves its device."""
        left = dict(moves)
        while left:
            done = [model for model, device in left.items() if await self._moved(model, device, proposal)]
            if not done:
                return
            for model in done:
                del left[model]

    async def _moved(self, model: str, device: str, proposal: Proposal) -> bool:
        why = f"gain {proposal.gain:.3g}/s"
        try:
            async for _ in self._roster.move(model, device, why).watch():
                pass
        except ShuttingDown:
            raise
        except Busy as error:
            _log.info("%s does not move now: %s", model, error.message)
            return False
        except MuxdError:
            return False  # the roster has told why
        return True

    def _placed(self) -> list[Entry]:
        found = [
            one for one in self._roster.entries.values() if one.lane is not None and one.state == "ready"
        ]
        if len(self._planning.names) < 2:
            raise ConfigError("there is one device: nothing to plan")
        if not found:
            raise ConfigError("no model is ready: nothing to plan")
        return found

    def _tell(self, proposal: Proposal, why: str, asked: bool) -> None:
        """A decision that only repeats the last one is told when somebody asked."""
        said = f"{proposal.reason} {proposal.moves}"
        if said == self._told and not (asked or proposal.adopt):
            return
        self._told = said
        places = {row.model: row for row in proposal.rows}
        shown = ", ".join(f"{m} {places[m].present} to {places[m].proposed}" for m in proposal.moves)
        detail = f"{proposal.reason} ({why}): gain {proposal.gain:.3g}/s, cost {proposal.cost:.3g}"
        rates = {f"rate of {row.model}": row.rate for row in proposal.rows}
        self._events.add(
            "replan", detail=f"{detail}; {shown}" if shown else detail,
            numbers={"gain": proposal.gain, "cost": proposal.cost, **rates},
        )  # fmt: skip


def drifted(before: Mapping[str, float], now: Mapping[str, float], part: float) -> bool:
    """Whether more than ``part`` of all requests a second has changed, or the models have. Pure."""
    if set(before) != set(now):
        return True
    return sum(abs(now[name] - before[name]) for name in now) > part * sum(before.values())


def decided(
    appraiser: Live, places: Mapping[str, int], pins: Mapping[str, int], policy: Policy, since: float
) -> tuple[Decision, dict[str, int]]:
    """The decision, and the places it was about: those proposed, adopted or not. Pure."""
    problem, sets = appraiser.problem, Pinned(appraiser, pins)
    present, fixed = live.layout(sets, places), live.indices(problem, pins)
    try:
        proposed = propose(appraiser, present, policy, sets, fixed)
    except (ConfigError, ValueError):  # it does not fit by the plan's reckoning: anew
        proposed = live.layout(sets, live.start(appraiser, pins))
    decision = decide(appraiser, present, proposed, policy, since, fixed)
    return decision, live.places(problem, relabelled(problem, present, proposed, fixed))


def _row(entry: Entry, demand: Demand, proposed: str, pins: Mapping[str, int]) -> Row:
    return Row(
        entry.name, entry.device, proposed, demand.rate, demand.prompt, demand.output, entry.name in pins
    )
