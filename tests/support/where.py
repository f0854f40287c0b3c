"""The places where end-to-end tests run their daemons: the CPU, GPUs of the stand-in, real GPUs.

A test names its places with ``on`` and gets each, one by one, as the fixture ``where``. On the stand-in the
daemon, MPS's shell, the descriptors, the workers' mappings, row tables, paged steps and their run-ahead are
the real code; tensors lie in host memory, kernels are the references, and a step has ended when it was asked
for: no stream, event or graph of a GPU is in it.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from muxd.device.cpu import available_cores
from support import leaks
from support.live import LiveDaemon, live
from support.stand_ins import python

_MARKS = {"cpu": [], "stand-in": [pytest.mark.stand_in], "gpu": [pytest.mark.gpu]}
EVERYWHERE = ("cpu", "stand-in", "gpu")
_ASK = "from muxd.device.driver import Driver; it = Driver(); print(it.count(), it.granularity())"


def place(name: str, *more: str, smoke: bool = False) -> Any:
    """A value for parametrize: the place, then ``more``. ``smoke``: `make test` runs it on the stand-in."""
    few = [pytest.mark.smoke] if smoke and name == "stand-in" else []
    return pytest.param(name, *more, marks=[*_MARKS[name], *few], id="-".join((name, *more)))


def on(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("where", [place(name) for name in names], indirect=True)


class Where:
    """``env``: what a daemon's environment has more than ours."""

    def __init__(self, name: str, env: Mapping[str, str]):
        self.name, self.env = name, dict(env)
        self.gpu, self.stand_in = name != "cpu", name == "stand-in"
        self.first, self.second = ("cuda:0", "cuda:1") if self.gpu else ("cpu:0", "cpu:1")

    def live(self, config: str, folder: Path) -> AbstractContextManager[LiveDaemon]:
        return live(config, folder, self.env)

    @cached_property
    def _driver(self) -> tuple[int, int]:
        """Its devices, and the bytes of a page; asked in a process of its own."""
        count, granularity = python(_ASK, env=self.env).split()
        return int(count), int(granularity)

    @property
    def devices(self) -> int:
        return self._driver[0] if self.gpu else available_cores()

    def pages(self, nbytes: int) -> int:
        """The bytes that an allocation of ``nbytes`` takes of a device's memory."""
        page = self._driver[1] if self.gpu else 1
        return -(-nbytes // page) * page

    def two_devices(self, pools: tuple[str, str] = ("16M", "16M"), memory: int = 0, second: str = "") -> str:
        """``[[device]]`` tables, of one core each on the CPU. ``memory``: bytes each may use, 0: what the
        machine has; ``second``: more lines for the second."""
        limit = f'memory = "{memory}"\n' if memory else ""
        return "".join(
            f'[[device]]\nname = "{name}"\npool = "{pool}"\n{limit}'
            + ("" if self.gpu else f"cores = [{n}]\n") + (second if n else "")
            for n, (name, pool) in enumerate(zip((self.first, self.second), pools, strict=True))
        )  # fmt: skip

    def check_regions(self, pid: int, *labels: str) -> None:
        """The process holds this memory of devices and no other; labels "pool" and "weights".

        The stand-in's descriptors do not say which is which. A real driver's have no name at all to know
        them by: there the tests of tests/gpu look at the memory itself.
        """
        held = [name.rpartition(":")[2].split()[0] for name in leaks.memfds(pid)]
        if not self.gpu:
            assert held == sorted(f"muxd-{label}" for label in labels), held
        elif self.stand_in:
            assert held == ["stand-in-gpu"] * len(labels), held
