"""What is watched, read where it is known: ledger, lanes, observer, journal, events. Counts nothing itself.

Reading is O(models + what has happened since); ``feed.py`` asks a few times a second while anybody watches.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from muxd import __version__
from muxd.clock import Clock
from muxd.engine.observer import Observer
from muxd.engine.slo import Slo
from muxd.engine.trace import RequestTimes
from muxd.fleet.adapters import Adapter, served
from muxd.fleet.catalog import Entry
from muxd.fleet.counts import asked, lanes
from muxd.fleet.events import Events
from muxd.fleet.site import Site
from muxd.fleet.state import State
from muxd.watch import changes
from muxd.watch.history import History
from muxd.watch.runs import pool_runs, work_runs
from muxd.watch.schemas import (
    AccountView,
    Change,
    DaemonView,
    DeviceView,
    FlightView,
    MarkView,
    ModelView,
    Picture,
    RequestView,
    WeightsView,
    WorkView,
)

ENDED, OPEN = 100, 40  # requests that are shown
_RAN, _MARKS = 300, 50  # news of one device at a time


@dataclass
class _Place:
    """How far one device's rings have been read."""

    ran: int
    marks: int
    ended: int


@dataclass(kw_only=True)
class Facts:
    """Of one daemon. ``wall``: seconds since 1970."""

    entries: Mapping[str, Entry]
    sites: Mapping[str, Site]
    observer: Observer
    events: Events
    history: History
    clock: Clock
    wall: Callable[[], float]
    address: Callable[[], str]
    began: float = field(init=False)  # since 1970
    _places: dict[str, _Place] = field(default_factory=dict)
    _event: int = 0  # the last one told
    _points: int = 0  # of the history, told
    _ended: deque[RequestView] = field(default_factory=lambda: deque(maxlen=ENDED))

    def __post_init__(self) -> None:
        self.began = self._epoch = self.wall()
        self._epoch -= self.clock.now()  # of the clock, since 1970

    def picture(self) -> Picture:
        """From nothing: how things are, and what is remembered. ``change`` goes on from here."""
        self._places = {name: _Place(0, 0, 0) for name in self.sites}
        self._event = self._points = 0
        self._ended.clear()
        now = self.clock.now()
        ran, marks = self._ran(changes.RAN), self._marks(changes.MARKS)
        events = self.events.since()[-changes.EVENTS :]
        self._event = self.events.last
        rates = self.history.rates.since(0)
        self._points = self.history.rates.count
        names = dict.fromkeys(name for point in rates for name in point)
        picture = self._tables(now)
        return changes.apply(
            picture, Change(picture.time, ran=ran, marks=marks, events=events, tokens=rates if names else [])
        )

    def change(self, before: Picture) -> Change:
        """What has happened since the last ``change`` or ``picture``; ``before``: the picture as it was
        then."""
        after = self._tables(self.clock.now())
        events = self.events.since(self._event)
        self._event = self.events.last
        rates = self.history.rates.since(self._points)
        self._points = self.history.rates.count
        tables = changes.difference(before, after)
        return Change(
            after.time, tables.daemon, tables.devices, tables.models, tables.requests, self._ran(_RAN),
            self._marks(_MARKS), events[-changes.EVENTS :], rates,
        )  # fmt: skip

    # ---- what is now --------------------------------------------------------------------------------

    def _tables(self, now: float) -> Picture:
        return Picture(
            round(self._epoch + now, 3),
            self._daemon(),
            {name: self._device(site) for name, site in self.sites.items()},
            {name: self._model(model, now) for name, model in served(self.entries).items()},
            self._requests(now),
        )

    def _daemon(self) -> DaemonView:
        unit = next(iter(self.sites.values())).unit
        outcomes: dict[str, int] = {str(name): count for name, count in self.observer.outcomes.items()}
        return DaemonView(
            __version__, os.getpid(), round(self.began, 1), unit.policy, self.address(), outcomes
        )

    def _device(self, site: Site) -> DeviceView:
        ledger = site.arena.ledger
        accounts = {
            name: AccountView(
                use.min_blocks, site.unit.quota(name), use.max_blocks, use.blocks, use.cached_blocks
            )
            for name, use in ledger.usage().items()
        }
        return DeviceView(
            site.name,
            site.device.cores,
            site.arena.block_bytes,
            ledger.present_blocks,
            pool_runs(accounts, ledger.free_blocks),
            accounts,
            self._weights(site),
            self._flights(site),
        )

    def _weights(self, site: Site) -> list[WeightsView]:
        """In memory of the device, on their way there, or in host memory."""
        found = []
        for name, supervisor in site.supervisors.items():
            loading = supervisor.life.state in (State.COLD, State.LOADING)
            if loading and supervisor.weights_bytes and supervisor.read < 1:
                done = round(supervisor.read, 2)
                found.append(WeightsView(name, supervisor.weights_bytes, "loading", done))
            elif supervisor.weights_bytes:
                found.append(WeightsView(name, supervisor.weights_bytes, "resident"))
        parked = [one for one in self.entries.values() if one.shelved is not None and one.device == site.name]
        return [*found, *(WeightsView(one.name, one.weight_bytes, "parked") for one in parked)]

    def _flights(self, site: Site) -> list[FlightView]:
        return [
            FlightView(span.model, span.phase, self._at(span.start), span.share, span.sequences)
            for span in site.unit.journal.timeline.running()
        ]

    def _model(self, model: Entry | Adapter, now: float) -> ModelView:
        entry = model.entry if isinstance(model, Adapter) else model
        lane, since = entry.lane, entry.life.since
        held = [] if isinstance(model, Adapter) else lanes(self.sites.values(), model.name)
        count, slo = asked(self.sites.values(), model), Slo.of(model.config)
        observer, name = self.observer, model.name
        ttft, tpot, attainment = observer.ttft[name], observer.tpot[name], observer.attainment.rolling(name)
        return ModelView(
            name=name,
            state=model.state,
            detail=model.detail,
            base=model.base,
            device=entry.device,
            chat=model.chat,
            generates=model.generates,
            pinned=entry.pinned,
            since=round(self._at(since), 1) if since else round(self.began, 1),
            share=lane.spec.share if lane else entry.config.share,
            in_use=sum(flight.share for _, lane in held for flight in lane.flights),
            running=count.running,
            waiting=count.waiting,
            weight_bytes=model.weight_bytes,
            ttft_p50_ms=_tenth(ttft.quantile_ms(0.5)),
            ttft_p99_ms=_tenth(ttft.quantile_ms(0.99)),
            ttft_target_ms=slo.ttft * 1000,
            tpot_p50_ms=_tenth(tpot.quantile_ms(0.5)),
            tpot_p99_ms=_tenth(tpot.quantile_ms(0.99)),
            tpot_target_ms=slo.tpot * 1000,
            tokens=observer.tokens_out[name],
            tokens_per_second=self.history.rate(name, observer.tokens_out[name], now),
            attainment=None if attainment is None else round(attainment, 3),
        )

    def _requests(self, now: float) -> dict[str, RequestView]:
        """By id: the last that ended, then those that have not."""
        ended, open_ = [], []
        for name, site in self.sites.items():
            journal, place = site.unit.journal, self._places[name]
            ended += [self._asked(one, name) for one in journal.finished.since(place.ended)[-ENDED:]]
            place.ended = journal.finished.count
            open_ += [self._asked(one, name) for one in journal.open(now, OPEN)]
        self._ended.extend(sorted(ended, key=lambda one: one.arrived + (one.seconds or 0.0)))
        open_.sort(key=lambda one: one.arrived)
        return {one.id: one for one in (*self._ended, *open_[-OPEN:])}

    def _asked(self, one: RequestTimes, device: str) -> RequestView:
        over = one.state not in ("waiting", "running")
        return RequestView(
            id=one.id,
            model=one.adapter or one.model,
            key=one.key,
            device=device,
            state=one.state,
            arrived=round(self._at(one.arrived), 3),
            queue_ms=None if one.started is None else _tenth((one.started - one.arrived) * 1000),
            ttft_ms=None if one.ttft is None else _tenth(one.ttft * 1000),
            seconds=round(one.total, 3) if over else None,
            prompt_tokens=one.prompt_tokens,
            tokens=one.generated_tokens,
            preemptions=one.preemptions,
        )

    # ---- what has happened ----------------------------------------------------------------------------

    def _ran(self, most: int) -> list[WorkView]:
        """Batches that ended since the last look, by their ends."""
        found: list[WorkView] = []
        for name, site in self.sites.items():
            timeline, place = site.unit.journal.timeline, self._places[name]
            spans = timeline.spans.since(place.ran)
            place.ran = timeline.spans.count
            oldest = self.clock.now() - changes.WINDOW
            spans = [span for span in spans if span.end is not None and span.end >= oldest]
            found += work_runs(name, spans, most // len(self.sites))
        found.sort(key=lambda one: one.end)
        return [
            WorkView(
                one.device, one.model, one.phase, self._at(one.begin), self._at(one.end), one.share,
                one.sequences, one.tokens, one.batches, one.lost,
            )
            for one in found
        ]  # fmt: skip

    def _marks(self, most: int) -> list[MarkView]:
        found: list[MarkView] = []
        for name, site in self.sites.items():
            timeline, place = site.unit.journal.timeline, self._places[name]
            new = timeline.marks.since(place.marks)[-most:]
            place.marks = timeline.marks.count
            found += [MarkView(name, self._at(m.time), m.kind, m.model, m.detail) for m in new]
        return sorted(found, key=lambda one: one.time)[-most:]

    def _at(self, time: float) -> float:
        """Of the clock, since 1970."""
        return round(self._epoch + time, 4)


def _tenth(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
