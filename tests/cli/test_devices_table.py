"""``muxctl devices`` for people."""

from muxd.admin.schemas import DeviceInfo
from muxd.cli.devices import table


def test_a_device_is_one_line_and_what_it_does_not_tell_is_a_dash() -> None:
    sound = DeviceInfo(
        index=0, name="NVIDIA H200", memory_used_bytes=3 << 30, memory_total_bytes=141 << 30,
        utilization_percent=97, power_watts=412.4, temperature_celsius=61, throttled=["power cap"],
    )  # fmt: skip
    lost = DeviceInfo(index=1, health="lost: GPU is lost")
    header, first, second = table([sound, lost]).splitlines()
    assert header.split() == ["GPU", "NAME", "MEMORY", "UTIL", "POWER", "TEMP", "THROTTLED", "HEALTH"]
    assert first.split() == ["0", "NVIDIA", "H200", "3G/141G", "97%", "412W", "61C", "power", "cap", "ok"]
    assert second.split() == ["1", "-", "-", "-", "-", "-", "-", "lost:", "GPU", "is", "lost"]


def test_a_host_without_gpus_says_so() -> None:
    assert "served on the CPU" in table([])
