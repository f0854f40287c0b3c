"""What /metrics asks of each model when somebody scrapes it; an unloaded model holds nothing."""

from collections.abc import Callable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge

from muxd.engine.lane import Lane
from muxd.engine.metrics import Metrics
from muxd.engine.scheduler import Scheduler
from muxd.fleet.catalog import Entry, Shown


class Gauges:
    """One per daemon. ``entries`` may gain and lose models; labels are served names and fixed words."""

    def __init__(
        self,
        registry: CollectorRegistry,
        metrics: Metrics,
        scheduler: Scheduler,
        entries: Mapping[str, Entry],
    ):
        self._metrics, self._scheduler, self._entries = metrics, scheduler, entries
        self._state = Gauge(
            "muxd_model_state", "1 for the state the model is in", ("model", "state"), registry=registry
        )
        ledger = scheduler.ledger
        metrics.watch_blocks("", "free", lambda: ledger.free_blocks)
        for name in entries:
            self.watch(name)

    def watch(self, name: str) -> None:
        """Once per model; doing it again changes nothing."""
        ledger, scheduler, metrics = self._scheduler.ledger, self._scheduler, self._metrics
        metrics.add_model(name)
        metrics.watch_queue(
            name,
            running=self._of_lane(name, lambda lane: lane.admitted),
            waiting=self._of_lane(name, lambda lane: lane.queued),
        )
        used = self._of_lane(name, lambda _: ledger.held(name))
        cached = self._of_lane(name, lambda _: ledger.usage()[name].cached_blocks)
        metrics.watch_blocks(name, "used", used)
        metrics.watch_blocks(name, "cached", cached)
        metrics.watch_quota(name, self._of_lane(name, lambda _: scheduler.quota(name)))
        for state in get_args(Shown):
            self._state.labels(name, state).set_function(self._is(name, state))

    def _of_lane(self, name: str, count: Callable[[Lane], int]) -> Callable[[], int]:
        def asked() -> int:
            lane = self._scheduler.lanes.get(name)
            return 0 if lane is None else count(lane)

        return asked

    def _is(self, name: str, state: str) -> Callable[[], int]:
        def asked() -> int:
            entry = self._entries.get(name)
            return int(entry is not None and entry.state == state)

        return asked
