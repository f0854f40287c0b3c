"""Measures how popular models are and, where it pays, brings them to other devices. Owns the plan over time.

``placement/replanner.py`` decides, over rates measured online; this file asks it every ``period``, has its
moves carried out (``Roster.rearrange``: nothing is dropped), and tells every decision with its numbers.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from msgspec import structs

from muxd.clock import Clock
from muxd.config import PlacementConfig
from muxd.errors import BadRequest, Busy, ConfigError, MuxdError, NotFound, ShuttingDown
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import Demand
from muxd.fleet.events import Events
from muxd.fleet.planning import Planning
from muxd.fleet.popularity import Popularity
from muxd.fleet.proposal import Proposal, ProposedModel
from muxd.fleet.roster import Roster
from muxd.placement import live
from muxd.placement import replanner as planner
from muxd.placement.host_view import HostView
from muxd.placement.live import Live
from muxd.placement.replan import Policy
from muxd.placement.replanner import View, Watch

_log = logging.getLogger("muxd.fleet")

_NOTHING = ("same", "small gain", "moves cost more")
_PERIODS = 12  # over which rates are averaged
_DUTY = 10  # a search gets at most one part in ten of the time: it shares the interpreter with everybody


def watch(config: PlacementConfig) -> Watch:
    """How rates are watched. Pure."""
    return Watch(period=config.period, memory=_PERIODS * config.period)


class Replanner:
    """``run`` is its life; ``propose``, ``now`` and ``host_view`` are for whoever asks."""

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
        policy = Policy(
            least_gain=config.least_gain, horizon=config.horizon, cooldown=config.cooldown, steps=live.STEPS
        )
        self._planner = planner.Replanner(policy)
        self._told = ""  # the last decision or error, so that the same one is told once
        self._settled: dict[str, float] | None = None  # rates at which there was nothing to gain
        self._rest = 0.0  # not before this time again
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Every ``period``, until cancelled; without ``replan`` rates are measured for who asks, no more.
        What goes wrong is logged and tried again."""
        while True:
            await asyncio.sleep(self._config.period)
            drifted = self._drifted()
            if not self._config.replan or self._busy.locked() or not drifted:
                continue
            with suppress(ShuttingDown):
                try:
                    await self.now("at its time")
                except MuxdError as error:
                    if error.message != self._told:
                        _log.warning("no new plan: %s", error.message)
                    self._told = error.message

    def _drifted(self) -> bool:
        """Looks at the rates. Whether a search can find what the last one did not."""
        entries = self._roster.entries
        rates = {n: demand.rate for n, demand in self._demands().items() if entries[n].state == "ready"}
        return self._clock.now() >= self._rest and (
            self._settled is None or drifted(self._settled, rates, self._config.least_gain)
        )

    def _demands(self) -> dict[str, Demand]:
        """Of all models that are served."""
        served = [name for name, entry in self._roster.entries.items() if entry.lane is not None]
        return self._popularity.look(served, self._clock.now())

    async def propose(self, *, asked: bool = False) -> Proposal:
        """What would be done now; nothing is. ``asked``: an operator does, so neither the cooldown nor
        ``least_gain`` counts. Raises ConfigError where there is nothing to plan, or costs are not known."""
        return (await self._look(asked))[0]

    async def host_view(self) -> HostView:
        """For a plan over several hosts. Raises ConfigError where the profile cannot be read."""
        entries, demands = self._ready, self._demands()
        return await asyncio.to_thread(self._planning.host_view, entries, demands)

    async def _look(self, asked: bool) -> tuple[Proposal, Live]:
        entries, demands, began = self._placed(), self._demands(), self._clock.now()
        pins, places = self._planning.pins(entries), self._planning.now(entries)
        seen: list[Live] = []

        def view(wanted: Mapping[str, float]) -> View:
            lengths = {name: structs.replace(demands[name], rate=rate) for name, rate in wanted.items()}
            seen.append(self._planning.appraiser(entries, lengths))
            return live.view(seen[-1], places, pins)

        rates = {entry.name: demands[entry.name].rate for entry in entries}
        decision = await asyncio.to_thread(self._planner.look, rates, view, began, asked=asked)
        now = self._clock.now()
        self._rest = now + _DUTY * (now - began)
        (appraiser,) = seen
        proposed = live.places(appraiser.problem, decision.proposed)
        rows = [
            _row(entry, demands[entry.name], self._planning.names[proposed[entry.name]], pins)
            for entry in entries
        ]
        moves = [row.model for row in rows if row.present != row.proposed]
        return Proposal(rows, decision.adopt, decision.reason, decision.gain, decision.cost, moves), appraiser

    async def now(self, why: str, *, asked: bool = False) -> Proposal:
        """Propose, and carry out what is adopted. Raises as ``propose``; a move that fails is told and ends
        it, what has moved stays."""
        async with self._busy:
            proposal, appraiser = await self._look(asked)
            self._tell(proposal, why, asked)
            nothing = proposal.reason in _NOTHING
            self._settled = {row.model: row.rate for row in proposal.rows} if nothing else None
            if proposal.adopt and proposal.moves:
                await self._carry_out(proposal, appraiser)
            return proposal

    async def _carry_out(self, proposal: Proposal, appraiser: Live) -> None:
        """In an order in which memory suffices."""
        devices = {row.model: row.proposed for row in proposal.rows if row.model in proposal.moves}
        try:
            operation = self._roster.rearrange(
                devices, costs=live.gaps(appraiser), fits=lambda _, models: live.fits(appraiser, models),
                why=f"gain {proposal.gain:.3g}/s",
            )  # fmt: skip
        except (BadRequest, Busy, NotFound) as error:  # somebody has changed it while it was searched
            _log.info("the plan is not carried out now: %s", error.message)
            self._pause()
            return
        self._planner.moved(self._clock.now())
        try:
            async for _ in operation.watch():
                pass
        except ShuttingDown:
            raise
        except MuxdError:
            self._pause()  # the roster has told why

    def _pause(self) -> None:
        """A plan that cannot be carried out now is not tried at every look."""
        self._rest = max(self._rest, self._clock.now() + self._config.cooldown)

    @property
    def _ready(self) -> list[Entry]:
        return [one for one in self._roster.entries.values() if one.lane is not None and one.state == "ready"]

    def _placed(self) -> list[Entry]:
        found = self._ready
        if len(self._planning.names) < 2:
            raise ConfigError("there is one device: nothing to plan")
        if not found:
            raise ConfigError("no model is ready: nothing to plan")
        return found

    def _tell(self, proposal: Proposal, why: str, asked: bool) -> None:
        """A decision that only repeats the last one is told when somebody asked."""
        if proposal.reason == self._told and not (asked or proposal.adopt):
            return
        self._told = proposal.reason
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


def _row(entry: Entry, demand: Demand, proposed: str, pins: Mapping[str, int]) -> ProposedModel:
    return ProposedModel(
        entry.name, entry.device, proposed, demand.rate, demand.prompt, demand.output, entry.name in pins
    )
