"""Readings through nvidia-ml-py over a stand-in library, and its absence."""

import json
import os
from pathlib import Path
from typing import Any

from support.stand_ins import python

READ = """
import dataclasses, json
from muxd.device.nvml import Nvml, NvmlMissing
try:
    with Nvml() as nvml:
        found = [{**dataclasses.asdict(one), "health": one.health} for one in nvml.read()]
    nvml.close()
    print(json.dumps([nvml.driver, found]))
except NvmlMissing as error:
    print(json.dumps(str(error)))
"""


def read(folder: Path | None, **env: str) -> Any:
    path = str(folder) if folder else ""
    return json.loads(python(READ, env={"LD_LIBRARY_PATH": path, **env}))


def test_all_that_a_device_tells(libnvml: Path) -> None:
    driver, devices = read(libnvml.parent)
    assert driver == "580.159.04"
    assert devices[0] == {
        "index": 0, "uuid": "GPU-0000", "name": "Stand-in",
        "memory_total": 100 << 30, "memory_used": 40 << 30, "utilization": 70, "memory_utilization": 30,
        "power": 412.5, "power_limit": 700.0, "temperature": 55, "sm_clock": 1980,
        "throttled": ["power cap"], "ecc_errors": 0, "retired_pending": False, "mps_clients": None,
        "lost": "", "health": "ok",
    }  # fmt: skip


def test_a_value_nobody_gives_is_none_and_an_ill_device_says_so(libnvml: Path) -> None:
    _, (_, hot, lost) = read(libnvml.parent)
    assert (hot["utilization"], hot["power"], hot["sm_clock"], hot["retired_pending"]) == (
        None,
        None,
        None,
        True,
    )
    assert hot["throttled"] == ["hardware slowdown", "thermal (hardware)"]
    assert hot["health"] == (
        "hardware slowdown, thermal (hardware), 3 uncorrected memory errors, "
        "memory to be replaced at the next reset"
    )
    assert (lost["index"], lost["health"]) == (2, "lost: GPU is lost")


def test_without_a_driver(libnvml: Path, tmp_path: Path) -> None:
    assert read(libnvml.parent, FAKE_NVML="dead") == "no NVIDIA driver to ask: Driver Not Loaded"
    if not os.path.exists("/proc/driver/nvidia"):
        assert read(tmp_path) == "no NVIDIA driver to ask: NVML Shared Library Not Found"
