"""What the end-to-end tests run on: the CPU, or a GPU, real or the stand-in, when MUXD_DEVICE says so."""

import os

import pytest

from muxd.device.cpu import available_cores
from muxd.device.driver import Driver
from support import leaks

GPU = os.environ.get("MUXD_DEVICE", "").startswith("cuda")
STAND_IN = GPU and "MUXD_LIBCUDA" in os.environ
FIRST, SECOND = ("cuda:0", "cuda:1") if GPU else ("cpu:0", "cpu:1")

on_the_cpu = pytest.mark.skipif(GPU, reason="about the CPU device")


def _devices() -> int:
    return Driver().count() if GPU else available_cores()


needs_two_devices = pytest.mark.skipif(_devices() < 2, reason="needs two cores, or two GPUs")


def pages(nbytes: int) -> int:
    """The bytes that an allocation of ``nbytes`` takes of a device's memory."""
    page = Driver().granularity() if GPU else 1
    return -(-nbytes // page) * page


def device_tables(pools: tuple[str, str], memory: int, second: str) -> str:
    """Two ``[[device]]`` tables; ``second``: more lines for the second."""
    limit = f'memory = "{memory}"\n' if memory else ""
    return "".join(
        f'[[device]]\nname = "{name}"\npool = "{pool}"\n{limit}'
        + ("" if GPU else f"cores = [{n}]\n") + (second if n else "")
        for n, (name, pool) in enumerate(zip((FIRST, SECOND), pools, strict=True))
    )  # fmt: skip


def check_regions(pid: int, *labels: str) -> None:
    """The process holds this memory of devices and no other; labels "pool" and "weights".

    The stand-in's descriptors do not say which is which. A real driver's have no name at all to know them
    by: there the tests of tests/gpu look at the memory itself.
    """
    held = [name.rpartition(":")[2].split()[0] for name in leaks.memfds(pid)]
    if not GPU:
        assert held == sorted(f"muxd-{label}" for label in labels)
    elif STAND_IN:
        assert held == ["stand-in-gpu"] * len(labels)
