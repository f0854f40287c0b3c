"""The GPUs' series for /metrics, read through NVML when somebody asks. One instance per registry."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from muxd.device.nvml import NvmlMissing, Reading

_FRESH = 1.0  # seconds a reading serves: several scrapers cost as much as one

Value = Callable[[Reading], float | None]

_SERIES: tuple[tuple[str, str, Value], ...] = (
    ("memory_used_bytes", "Memory taken, by anybody", lambda one: one.memory_used),
    ("memory_total_bytes", "Memory there is", lambda one: one.memory_total),
    ("utilization_ratio", "Part of the time in which a kernel ran", lambda one: _ratio(one.utilization)),
    ("power_watts", "Power drawn", lambda one: one.power),
    ("temperature_celsius", "Temperature", lambda one: one.temperature),
    ("sm_clock_hertz", "Clock of the SMs", lambda one: one.sm_clock and one.sm_clock * 1e6),
    ("ecc_errors", "Uncorrected memory errors since the driver was loaded", lambda one: one.ecc_errors),
    ("healthy", "1: sound; 0: lost, failing or slowed down by heat", lambda one: float(one.health == "ok")),
)


class DeviceMetrics(Collector):
    """``read``: ``Nvml.read``. What a device does not tell has no sample; without NVML there are none."""

    def __init__(
        self,
        registry: CollectorRegistry,
        read: Callable[[], list[Reading]],
        now: Callable[[], float] = time.monotonic,
    ):
        self._read, self._now = read, now
        self._seen: tuple[float, list[Reading]] | None = None
        registry.register(self)

    def describe(self) -> list[GaugeMetricFamily]:
        """The names, without asking a device."""
        return [_family(name, text) for name, text, _ in _SERIES]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family a series, one sample a device."""
        readings = self._readings()
        for name, text, value in _SERIES:
            family = _family(name, text)
            for one in readings:
                if (number := value(one)) is not None and not (one.lost and name != "healthy"):
                    family.add_metric([str(one.index), one.uuid], number)
            yield family
        throttled = GaugeMetricFamily(
            "muxd_gpu_throttled", "1 for each reason why the clocks are low", labels=["gpu", "uuid", "reason"]
        )
        for one in readings:
            for reason in one.throttled:
                throttled.add_metric([str(one.index), one.uuid, reason], 1.0)
        yield throttled

    def _readings(self) -> list[Reading]:
        now = self._now()
        if self._seen is None or now - self._seen[0] > _FRESH:
            try:
                self._seen = (now, self._read())
            except NvmlMissing:
                self._seen = (now, [])
        return self._seen[1]


def _family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"muxd_gpu_{name}", text, labels=["gpu", "uuid"])


def _ratio(percent: int | None) -> float | None:
    return None if percent is None else percent / 100
