"""What was learnt survives a restart: quotas, batch costs, how much each model is asked for and how long it
takes to wake, in one file.

It is written every few minutes and at the end, and read once, at the start. A file that is none is left aside
with a line in the log; what is said of a model that is another one now, or at another device, is left out.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from muxd import whole
from muxd.clock import Clock
from muxd.config import state
from muxd.engine.learnt import Learnt
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import shape
from muxd.fleet.popularity import Popularity, Usual
from muxd.fleet.site import Site
from muxd.placement.wakes import Wakes

_log = logging.getLogger("muxd.fleet")

_PERIOD = 180.0  # seconds
_LARGEST = 16 << 20  # bytes of a file that could be ours

T = TypeVar("T")


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model. ``learnt`` and ``wakes`` hold for ``stamp`` alone, ``usual`` for the folder, wherever it
    runs."""

    path: str
    stamp: str  # of its shape, and of device and pool
    learnt: Learnt
    usual: Usual
    wakes: Wakes = Wakes()  # a file from before they were learnt is as good


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, Record]
    version: Literal[1] = 1


def file_of(config: Path, kind: Literal["learnt", "set"] = "learnt") -> Path:
    """Where what is learnt, or set by an operator, under that configuration is kept: each has its own."""
    full = config.absolute()
    return state() / f"{full.stem}-{hashlib.sha256(bytes(full)).hexdigest()[:12]}.{kind}.json"


def decode(text: bytes) -> dict[str, Record]:
    """Raises ValueError, in a sentence, for a file of another version, a damaged one, and numbers that cannot
    be."""
    try:
        return msgspec.json.decode(text, type=_File).models
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def encode(models: Mapping[str, Record]) -> bytes:
    return msgspec.json.encode(_File(dict(models)))


def read(path: Path, decode: Callable[[bytes], dict[str, T]], lost: str) -> dict[str, T]:
    """By model. Nothing, where there is no file that can be used, and a line in the log that says what is
    ``lost``; never raises."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError("it is too large")
        return decode(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("%s is not used, %s: %s", path, lost, error)
        return {}


def write(path: Path, models: Mapping[str, Record]) -> None:
    """Whole or not at all. Raises OSError."""
    whole.write(path, encode(models))


@dataclass(kw_only=True)
class Keeper:
    """Of one daemon."""

    path: Path
    entries: Mapping[str, Entry]
    sites: Mapping[str, Site]
    popularity: Popularity
    clock: Clock

    async def take_up(self) -> None:
        """Once, when the models have their lanes."""
        lost = "quotas and costs are learnt anew"
        self.give(await asyncio.to_thread(read, self.path, decode, lost))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD)
            await self.save()

    async def save(self) -> None:
        """Where that cannot be, the log says so."""
        try:
            await asyncio.to_thread(write, self.path, self.records())
        except OSError as error:
            _log.warning("%s: what was learnt cannot be kept: %s", self.path, error.strerror or error)

    def records(self) -> dict[str, Record]:
        """As things are now."""
        learnt = {name: site.unit.learnt() for name, site in self.sites.items()}
        usual = self.popularity.records(self.clock.now())
        return {
            entry.name: Record(
                entry.config.path, self._stamp(entry), learnt[entry.device].get(entry.name, Learnt()),
                usual.get(entry.name, Usual()), entry.wakes,
            )
            for entry in self._served()
        }  # fmt: skip

    def give(self, records: Mapping[str, Record]) -> None:
        """To those who learn, as far as it is about what they have now."""
        at = {name: dict[str, Learnt]() for name in self.sites}
        usual = {}
        for entry in self._served():
            record = records.get(entry.name)
            if record is None or record.path != entry.config.path:
                continue
            usual[entry.name] = record.usual
            if record.stamp == self._stamp(entry):
                at[entry.device][entry.name], entry.wakes = record.learnt, record.wakes
        self.popularity.take_up(usual, self.clock.now())
        for name, learnt in at.items():
            self.sites[name].unit.take_up(learnt)

    def _served(self) -> list[Entry]:
        return [one for one in self.entries.values() if one.lane is not None and one.opened is not None]

    def _stamp(self, entry: Entry) -> str:
        """Costs and quotas of another shape, type, device or pool mean nothing here."""
        assert entry.opened is not None
        site = self.sites[entry.device]
        facts = (
            shape(entry), entry.opened.plan.dtype, entry.step, site.name, site.device.cores,
            site.arena.nbytes, site.arena.block_bytes,
        )  # fmt: skip
        return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]
