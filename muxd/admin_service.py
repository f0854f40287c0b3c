"""The daemon's side of the local door: what muxctl may see (``Report``) and what it may change.

Made by ``muxd.daemon`` and handed to ``admin.server`` and to ``run``'s ``on_ready``. Every change goes
through the unit, on the daemon's own loop: it takes effect with the next decision.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import get_args

from msgspec.structs import replace

from muxd.admin.schemas import (
    Audit,
    Drain,
    Drained,
    KeyInfo,
    LoadModel,
    ModelInfo,
    MoveModel,
    PinModel,
    PolicyState,
    QuotaChange,
    QuotaInfo,
    Replan,
    SleepModel,
    UnloadModel,
    WakeModel,
)
from muxd.api.keys import read_keys
from muxd.config import Config, ModelConfig, Policy, QuotaConfig
from muxd.config_load import with_model
from muxd.engine.journal import FINISHED, newest
from muxd.engine.slo import Slo
from muxd.engine.trace import RequestTimes, Trace
from muxd.errors import BadRequest, ConfigError, MuxdError, NotFound
from muxd.fleet.adapters import served
from muxd.fleet.drop_ins import DropIns
from muxd.fleet.events import Event, Events
from muxd.fleet.gate import Gate
from muxd.fleet.log_lines import LogLine, LogLines
from muxd.fleet.proposal import Proposal
from muxd.fleet.reload import Reloaded
from muxd.fleet.replanner import Replanner
from muxd.fleet.ring import until
from muxd.fleet.roster import Roster
from muxd.fleet.site import Site
from muxd.fleet.steps import Step
from muxd.placement.host_view import HostView
from muxd.pool.arena import Arena
from muxd.pool.ledger import Usage
from muxd.report import Report
from muxd.sizes import size
from muxd.watch.feed import Feed
from muxd.watch.watcher import Watcher

POLICIES = list(get_args(Policy))


@dataclass(kw_only=True)
class AdminService(Report):
    """Implements ``admin.schemas.AdminService``."""

    roster: Roster
    config: Config
    events: Events
    gate: Gate
    replanner: Replanner
    feed: Feed
    log_lines: LogLines
    reloaded: Callable[[], Awaitable[Reloaded]]  # reads the configuration again
    drop_ins: DropIns | None = None  # None: muxd was started without a file

    # ---- quotas -----------------------------------------------------------------------------------

    def quota(self) -> list[QuotaInfo]:
        return [
            self._quota(site, model, use)
            for site in self.sites.values()
            for model, use in site.arena.ledger.usage().items()
        ]

    def set_quota(self, change: QuotaChange) -> list[QuotaInfo]:
        """Raises NotFound, and BadRequest where a value cannot be, alone or beside the other models'.

        A model that moves keeps it; ``muxctl load`` goes back to the configuration's.
        """
        entry = self.entries.get(change.model)
        if entry is None or entry.lane is None:
            served = [model for site in self.sites.values() for model in site.unit.lanes]
            known = ", ".join(served) or "none"
            raise NotFound(f"model: no model {change.model!r} has a quota; those that have: {known}")
        weight = entry.quota.weight if change.weight is None else change.weight
        if not 0 < weight < inf:
            raise BadRequest(f"weight: {weight} must be above 0 and finite", param="weight")
        site = self.roster.site(entry)
        try:
            least, most = self._bounds(site.arena, change, site.arena.ledger.usage()[change.model])
            site.unit.set_quota(change.model, least, most, weight)
        except ConfigError as error:
            raise BadRequest(error.message) from None
        entry.quota = QuotaConfig(change.min or entry.quota.min, change.max or entry.quota.max, weight)
        self.roster.altered.set()
        return self.quota()

    def give_quota(self, model: ModelConfig) -> None:
        """What that says of it. Raises as ``set_quota``."""
        self.set_quota(QuotaChange(model.name, model.quota.min, model.quota.max, model.quota.weight))

    def _bounds(self, arena: Arena, change: QuotaChange, use: Usage) -> tuple[int, int]:
        """Least and most head blocks. A guarantee is rounded down to blocks as at the start."""
        least = use.min_blocks if change.min is None else _blocks(arena, "min", change.min)
        most = use.max_blocks if change.max is None else _blocks(arena, "max", change.max)
        if least > most:
            raise BadRequest(
                f"min: {_shown(arena, change.min, least)} is above max, {_shown(arena, change.max, most)} "
                f"({change.model})",
                param="min",
            )
        return least, most

    def _quota(self, site: Site, model: str, use: Usage) -> QuotaInfo:
        block, quota = site.arena.block_bytes, site.unit.quota(model)
        return QuotaInfo(
            model=model,
            weight=self.entries[model].quota.weight,
            min_bytes=use.min_blocks * block,
            quota_bytes=quota * block,
            max_bytes=use.max_blocks * block,
            used_bytes=use.blocks * block,
            cached_bytes=use.cached_blocks * block,
            borrowed_bytes=max(0, use.blocks - quota) * block,
            pool_bytes=site.arena.nbytes,
            device=site.name if self.several else "",
        )

    # ---- models -----------------------------------------------------------------------------------

    def load(self, wanted: LoadModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.load`` and ``Roster.add`` do, and BadRequest for settings that cannot be."""
        if isinstance(wanted.model, str):
            return self._load_again(wanted.model, wanted)
        model = replace(wanted.model, device=wanted.device or wanted.model.device)
        try:
            self._check(model)
            kept = self._files.kept(model) if wanted.keep else nullcontext()
            operation = self.roster.add(model, around=kept)
        except ConfigError as error:
            raise BadRequest(error.message) from None
        self.observer.aim(model.name, Slo.of(model))
        return operation.watch()

    def _load_again(self, name: str, wanted: LoadModel) -> AsyncIterator[Step]:
        entry = self.entries.get(name)
        if entry is None or not wanted.keep:
            return self.roster.load(name, wanted.device).watch()
        kept = self._files.kept(replace(entry.config, device=wanted.device or entry.config.device))
        if entry.state == "ready":
            return _only(kept, Step(name, "ready"))
        return self.roster.load(name, wanted.device, around=kept).watch()

    @property
    def _files(self) -> DropIns:
        if self.drop_ins is None:
            raise BadRequest("keep: this muxd was started without a file beside which models could be kept")
        return self.drop_ins

    def _check(self, model: ModelConfig) -> None:
        """Beside the models there are now. Raises ConfigError."""
        models = [one for entry in self.entries.values() for one in (entry.config, *entry.adapters)]
        with_model(replace(self.config, model=models), model)

    def unload(self, wanted: UnloadModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.unload`` does."""
        if not wanted.keep:
            return self.roster.unload(wanted.model, now=wanted.now).watch()
        dropped, entry = self._files.dropped(wanted.model), self.entries.get(wanted.model)
        if entry is not None and entry.state == "unloaded":
            return _only(dropped, Step(wanted.model, "unloaded"))
        return self.roster.unload(wanted.model, now=wanted.now, around=dropped).watch()

    def sleep(self, wanted: SleepModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.sleep`` does."""
        return self.roster.sleep(wanted.model, now=wanted.now).watch()

    def wake(self, wanted: WakeModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.wake`` does."""
        return self.roster.wake(wanted.model).watch()

    def pin(self, wanted: PinModel) -> ModelInfo:
        """Raises as ``Roster.pin`` does. ``muxctl load`` goes back to the configuration's, and so does a
        reload that changes it."""
        self.roster.pin(wanted.model, wanted.pinned)
        return self._model(self.entries[wanted.model])

    def move(self, wanted: MoveModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.move`` does."""
        return self.roster.move(wanted.model, wanted.device, "by an operator").watch()

    async def replan(self, wanted: Replan) -> AsyncIterator[Proposal]:
        """One proposal, carried out unless it is a dry run. Raises BadRequest where there is nothing to
        plan."""
        try:
            if wanted.dry_run:
                yield await self.replanner.propose(asked=True)
            else:
                yield await self.replanner.now("asked for", asked=True)
        except ConfigError as error:
            raise BadRequest(error.message) from None

    async def host_view(self) -> HostView:
        """Raises BadRequest where the costs that are configured cannot be read."""
        try:
            return await self.replanner.host_view()
        except ConfigError as error:
            raise BadRequest(error.message) from None

    async def drain(self, wanted: Drain) -> AsyncIterator[Drained]:
        """Models stay where they are, and what runs is answered."""
        self.gate.draining = not wanted.end
        if wanted.end:
            self.events.add("drain ended", detail="muxd takes requests again")
        else:
            self.events.add("draining", detail=f"{self._left()} requests are still answered")
        yield Drained(self.gate.taking, self._left())
        while self.gate.draining and (left := [unit for unit in self._units if not unit.idle]):
            await left[0].empty()
            yield Drained(self.gate.taking, self._left())

    def _left(self) -> int:
        requests = self.status().requests
        return requests.running + requests.waiting

    async def reload(self) -> AsyncIterator[Reloaded]:
        """Once; what cannot be is told, not raised: nothing of it is the asker's mistake."""
        yield await self.reloaded()

    def audit(self) -> Audit:
        """Takes a moment on a large pool; nothing else is served meanwhile."""
        faults = []
        for site in self.sites.values():
            try:
                site.arena.ledger.audit()
            except MuxdError as error:
                faults.append(f"{site.name}: {error.message}" if self.several else error.message)
        ledgers = [site.arena.ledger for site in self.sites.values()]
        return Audit(
            "; ".join(faults),
            sum(ledger.present_blocks for ledger in ledgers),
            sum(ledger.free_blocks for ledger in ledgers),
            sum(ledger.cached_blocks for ledger in ledgers),
            sum(ledger.held_blocks for ledger in ledgers),
        )

    # ---- policy -----------------------------------------------------------------------------------

    def policy(self) -> PolicyState:
        return PolicyState(self._units[0].policy, POLICIES)

    def set_policy(self, name: str) -> PolicyState:
        """On all devices or on none. Raises BadRequest for an unknown name and Busy while requests are
        served."""
        if name not in POLICIES:
            raise BadRequest(f"policy: {name!r} is none of {', '.join(POLICIES)}", param="policy")
        before, done = self._units[0].policy, []
        try:
            for unit in self._units:
                unit.set_policy(name)
                done.append(unit)
        except MuxdError:
            for unit in done:
                unit.set_policy(before)
            raise
        return self.policy()

    # ---- what happened ----------------------------------------------------------------------------

    def why(self, id: str) -> list[RequestTimes]:
        """Raises NotFound."""
        found = newest([unit.journal.find(id, self.clock.now()) for unit in self._units])
        if not found:
            raise NotFound(
                f"no request {id!r} is running or among the last {FINISHED} that ended; the id is the "
                'answer\'s "id" or its x-request-id header',
                code="unknown_request",
            )
        return [self._cut_over(one) for one in found]

    def _cut_over(self, one: RequestTimes) -> RequestTimes:
        """With the devices of its model's ranks."""
        entry = self.entries.get(one.model)
        if entry is None or entry.config.tp == 1:
            return one
        return replace(one, cut_over=entry.device.split("+"))

    def happened(self, model: str = "") -> list[Event]:
        """What is remembered. Raises NotFound for a model that is neither served nor remembered."""
        self._known(model)
        return self.events.since(model=model)

    def follow(self, model: str = "") -> AsyncIterator[Event]:
        """The same, and what comes, until muxd stops."""
        self._known(model)
        return until(self.gate.stopping, self.events.follow(model=model))

    def keys(self) -> list[KeyInfo]:
        """Of the file as it is now. Raises BadRequest where there is none, or it cannot be read."""
        if not self.config.server.keys:
            raise BadRequest("server.keys: not set, so whoever reaches the HTTP door may come in")
        try:
            found = read_keys(Path(self.config.server.keys)).values()
        except ConfigError as error:
            raise BadRequest(error.message) from None
        return [KeyInfo(one.name, one.models, one.actions, one.max_concurrency, one.weight) for one in found]

    def logged(self) -> list[LogLine]:
        """The newest lines of the log."""
        return self.log_lines.ring.since()

    def follow_log(self) -> AsyncIterator[LogLine]:
        """The same, and what comes, until muxd stops."""
        return until(self.gate.stopping, self.log_lines.ring.follow())

    def _known(self, model: str) -> None:
        known = served(self.entries)
        if model and model not in known and not self.events.since(model=model):
            raise NotFound(f"there is no model {model!r}; there are: {', '.join(known) or 'none'}")

    def watch(self, cut: Callable[[], None]) -> AbstractContextManager[Watcher]:
        """Raises Overloaded and ShuttingDown."""
        return self.feed.watch(cut)

    def trace(self) -> list[Trace]:
        """One for each device."""
        now = self.clock.now()
        return [
            replace(site.unit.journal.timeline.snapshot(now), device=site.name if self.several else "")
            for site in self.sites.values()
        ]


async def _only(around: AbstractAsyncContextManager[None], last: Step) -> AsyncIterator[Step]:
    """What is done around nothing, for a model that stands already as it is wanted."""
    async with around:
        pass
    yield last


def _blocks(arena: Arena, field: str, text: str) -> int:
    count = size(text, key=field, whole=arena.nbytes) // arena.block_bytes
    if count > arena.ledger.total_blocks:
        pool = f"the pool has {arena.nbytes} bytes"
        raise BadRequest(f"{field}: {text!r} is more than there is, {pool}", param=field)
    return count


def _shown(arena: Arena, text: str | None, blocks: int) -> str:
    return repr(text) if text is not None else f"{blocks * arena.block_bytes} bytes"
