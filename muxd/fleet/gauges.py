"""What /metrics asks of each model when somebody scrapes it; an unloaded model holds nothing."""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Gauge

from muxd.engine.lane import Lane
from muxd.engine.metrics import Metrics
from muxd.fleet.adapters import served
from muxd.fleet.catalog import Entry, Shown
from muxd.fleet.counts import asked, lanes
from muxd.fleet.site import Site

_STEPS = ("native", "torch", "gpu")


class Gauges:
    """One per daemon. ``entries`` may gain and lose models; labels are served names and fixed words.

    A model's numbers are those of all devices together; with more than one there are also the pools one by
    one, and where each model is.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        metrics: Metrics,
        sites: Mapping[str, Site],
        entries: Mapping[str, Entry],
    ):
        self._metrics, self._sites, self._entries = metrics, sites, entries
        self._state = Gauge(
            "muxd_model_state", "1 for the state the model is in", ("model", "state"), registry=registry
        )
        self._step = Gauge(
            "muxd_model_step",
            "1 for what computes the model: on a CPU the native step, or torch where there is none",
            ("model", "step"),
            registry=registry,
        )
        metrics.watch_blocks("", "free", lambda: sum(s.arena.ledger.free_blocks for s in sites.values()))
        self._device: Gauge | None = None
        if len(sites) > 1:
            self._device = Gauge(
                "muxd_model_device",
                "1 for the device the model is or was at",
                ("model", "device"),
                registry=registry,
            )
            free = Gauge(
                "muxd_device_free_blocks", "Head blocks nobody holds", ("device",), registry=registry
            )
            for name, site in sites.items():
                free.labels(name).set_function(_free(site))
        for name, entry in entries.items():
            self.watch(name)
            for adapter in entry.adapters:
                self.watch_adapter(adapter.name)

    def watch_adapter(self, name: str) -> None:
        """What counts requests, and its state: all else is its base's. Doing it again changes nothing."""
        self._metrics.add_model(name)
        self._metrics.watch_queue(
            name, running=self._asked(name, "running"), waiting=self._asked(name, "waiting")
        )
        for state in get_args(Shown):
            self._state.labels(name, state).set_function(self._is(name, "state", state))

    def watch(self, name: str) -> None:
        """Once per model; doing it again changes nothing."""
        metrics = self._metrics
        metrics.add_model(name)
        metrics.watch_queue(name, running=self._asked(name, "running"), waiting=self._asked(name, "waiting"))
        used = self._summed(name, lambda site, _: site.arena.ledger.held(name))
        cached = self._summed(name, lambda site, _: site.arena.ledger.usage()[name].cached_blocks)
        metrics.watch_blocks(name, "used", used)
        metrics.watch_blocks(name, "cached", cached)
        metrics.watch_quota(name, self._summed(name, lambda site, _: site.unit.quota(name)))
        for state in get_args(Shown):
            self._state.labels(name, state).set_function(self._is(name, "state", state))
        for step in _STEPS:
            self._step.labels(name, step).set_function(self._is(name, "step", step))
        if self._device is not None:
            for device in self._sites:
                self._device.labels(name, device).set_function(self._is(name, "device", device))

    def _summed(self, name: str, count: Callable[[Site, Lane], int]) -> Callable[[], int]:
        def asked() -> int:
            return sum(count(site, lane) for site, lane in lanes(self._sites.values(), name))

        return asked

    def _asked(self, name: str, what: Literal["running", "waiting"]) -> Callable[[], int]:
        def count() -> int:
            model = served(self._entries).get(name)
            return 0 if model is None else int(getattr(asked(self._sites.values(), model), what))

        return count

    def _is(self, name: str, what: Literal["state", "device", "step"], value: str) -> Callable[[], int]:
        def asked() -> int:
            entry = served(self._entries).get(name)
            return int(entry is not None and getattr(entry, what) == value)

        return asked


def _free(site: Site) -> Callable[[], int]:
    return lambda: site.arena.ledger.free_blocks
