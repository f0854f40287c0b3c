"""Quotas and pins that an operator has set while muxd ran survive a restart: one file beside what was learnt.

It is written when something is set. What the configuration says is written with it: where that says something
else by the next start, the configuration is newer and holds.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from muxd import whole
from muxd.config import ModelConfig, QuotaConfig
from muxd.errors import MuxdError
from muxd.fleet.catalog import Entry
from muxd.fleet.learnt import read

_log = logging.getLogger("muxd.fleet")

Resident = Literal["demand", "always"]


class Said(Struct, frozen=True, forbid_unknown_fields=True):
    """By the configuration, of one model."""

    path: str
    quota: QuotaConfig
    resident: Resident


class Wish(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model, in place of what was ``said``."""

    said: Said
    quota: QuotaConfig
    pinned: bool


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, Wish]
    version: Literal[1] = 1


def decode(text: bytes) -> dict[str, Wish]:
    """Raises ValueError as ``learnt.decode`` does."""
    try:
        return msgspec.json.decode(text, type=_File).models
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def encode(models: Mapping[str, Wish]) -> bytes:
    return msgspec.json.encode(_File(dict(models)))


@dataclass(kw_only=True)
class Wishes:
    """Of one daemon. ``set_quota`` raises MuxdError where a quota cannot hold."""

    path: Path
    entries: Mapping[str, Entry]
    set_quota: Callable[[ModelConfig], None]
    altered: asyncio.Event  # something was set
    _written: dict[str, Wish] = field(default_factory=dict)

    async def take_up(self) -> None:
        """Once, when the models have their lanes."""
        lost = "quotas and pins are the configuration's"
        self._written = await asyncio.to_thread(read, self.path, decode, lost)
        self.give(self._written)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.altered.wait()
            self.altered.clear()
            await self.save()

    async def save(self) -> None:
        """Where that cannot be, the log says so."""
        if (wishes := self.wishes()) == self._written:
            return
        try:
            await asyncio.to_thread(whole.write, self.path, encode(wishes))
            self._written = wishes
        except OSError as error:
            _log.warning("%s: what was set cannot be kept: %s", self.path, error.strerror or error)

    def wishes(self) -> dict[str, Wish]:
        """As things are now."""
        made = {name: Wish(_said(entry), entry.quota, entry.pinned) for name, entry in self.entries.items()}
        return {name: wish for name, wish in made.items() if wish != _as_said(wish.said)}

    def give(self, wishes: Mapping[str, Wish]) -> None:
        """To models that are still what they were. A quota may have to wait for another to make room."""
        wanted: dict[str, QuotaConfig] = {}
        for name, wish in wishes.items():
            entry = self.entries.get(name)
            if entry is not None and _said(entry) == wish.said:
                entry.pinned = wish.pinned
                if wish.quota != entry.quota:
                    wanted[name] = wish.quota
        refused = self._set(wanted)
        while len(refused) < len(wanted):
            wanted = {name: wanted[name] for name in refused}
            refused = self._set(wanted)
        for name, why in refused.items():
            _log.warning("%s: its quota is the configuration's, not what was set: %s", name, why)

    def _set(self, wanted: Mapping[str, QuotaConfig]) -> dict[str, str]:
        """Those that cannot hold, and why not."""
        refused = {}
        for name, quota in wanted.items():
            try:
                self.set_quota(msgspec.structs.replace(self.entries[name].config, quota=quota))
            except MuxdError as error:
                refused[name] = error.message
        return refused


def _said(entry: Entry) -> Said:
    config = entry.config
    return Said(config.path, config.quota, config.resident)


def _as_said(said: Said) -> Wish:
    return Wish(said, said.quota, said.resident == "always")
