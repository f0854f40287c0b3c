"""The GPUs on /metrics: what is known, once a second, and nothing made up."""

from prometheus_client import CollectorRegistry, generate_latest

from muxd.device.device_metrics import DeviceMetrics
from muxd.device.nvml import NvmlMissing, Reading

SOUND = Reading(
    0,
    "GPU-a",
    "H",
    100,
    40,
    utilization=70,
    power=412.5,
    temperature=55,
    throttled=("power cap",),
    ecc_errors=0,
)


def text(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_one_sample_for_each_thing_a_device_tells() -> None:
    registry = CollectorRegistry()
    DeviceMetrics(registry, lambda: [SOUND, Reading(1, lost="GPU is lost")])
    assert text(registry) == [
        'muxd_gpu_memory_used_bytes{gpu="0",uuid="GPU-a"} 40.0',
        'muxd_gpu_memory_total_bytes{gpu="0",uuid="GPU-a"} 100.0',
        'muxd_gpu_utilization_ratio{gpu="0",uuid="GPU-a"} 0.7',
        'muxd_gpu_power_watts{gpu="0",uuid="GPU-a"} 412.5',
        'muxd_gpu_temperature_celsius{gpu="0",uuid="GPU-a"} 55.0',
        'muxd_gpu_ecc_errors{gpu="0",uuid="GPU-a"} 0.0',
        'muxd_gpu_healthy{gpu="0",uuid="GPU-a"} 1.0',
        'muxd_gpu_healthy{gpu="1",uuid=""} 0.0',
        'muxd_gpu_throttled{gpu="0",reason="power cap",uuid="GPU-a"} 1.0',
    ]


def test_devices_are_read_once_a_second_however_many_ask() -> None:
    now, reads, registry = [0.0], [], CollectorRegistry()

    def read() -> list[Reading]:
        reads.append(now[0])
        return [SOUND]

    DeviceMetrics(registry, read, lambda: now[0])
    assert reads == [], "registering asks no device"
    for moment in (5.0, 5.5, 6.1, 6.2):
        now[0] = moment
        text(registry)
    assert reads == [5.0, 6.1]


def test_a_driver_that_goes_away_ends_the_samples_not_the_page() -> None:
    def gone() -> list[Reading]:
        raise NvmlMissing("NVML stopped answering")

    registry = CollectorRegistry()
    DeviceMetrics(registry, gone)
    assert text(registry) == []
