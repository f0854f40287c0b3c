"""On SIGHUP the configuration is read again, and what differs is done or refused whole (``reload.py``).

Models come, go and move by the roster's roads, one at a time, and wait for what an operator has begun.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from muxd.config import Config, ModelConfig
from muxd.config_checks import check_quotas
from muxd.config_load import load
from muxd.engine.observer import Observer
from muxd.engine.slo import Slo
from muxd.errors import ConfigError, MuxdError
from muxd.fleet import notify
from muxd.fleet.catalog import Entry
from muxd.fleet.drop_ins import DropIns
from muxd.fleet.events import Events
from muxd.fleet.operation import Operation
from muxd.fleet.reload import Edit, Reloaded, Setting, edits, outcome, settings
from muxd.fleet.roster import Roster

_log = logging.getLogger("muxd.fleet")


@dataclass(frozen=True)
class Source:
    """Where the configuration was read from, and the flags that go before it."""

    file: Path
    flags: Mapping[str, Any]

    def read(self) -> Config:
        """With the environment of now. Raises ConfigError."""
        return load(self.file, flags=self.flags)


@dataclass(kw_only=True)
class Reloader:
    """``config`` is what holds now. ``set_policy`` and ``set_quota`` are the operator's; ``told``: what
    systemd has said; ``wish``: set whenever a reload is wanted, several during one are one."""

    config: Config
    source: Source | None
    roster: Roster
    observer: Observer
    events: Events
    set_policy: Callable[[str], object]
    set_quota: Callable[[ModelConfig], object]
    told: Mapping[str, str]
    wish: asyncio.Event
    drop_ins: DropIns | None = None
    _waiting: list[asyncio.Future[Reloaded]] = field(default_factory=list)

    async def asked(self) -> Reloaded:
        """Reload, and tell what came of it. Cancelled, it is done all the same."""
        told: asyncio.Future[Reloaded] = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        self.wish.set()
        return await told

    async def run(self) -> None:
        """Reload whenever it is wished, until cancelled."""
        while True:
            await self.wish.wait()
            self.wish.clear()
            waiting, self._waiting = self._waiting, []
            notify.reloading(env=self.told)
            try:
                came = await self.reload()
            except Exception as error:  # the daemon serves on
                _log.exception("a defect while the configuration was reloaded")
                came = self._refused(f"a defect: {type(error).__name__}: {error}")
            notify.ready(came.summary, env=self.told)
            for one in waiting:
                if not one.done():  # who asked may have gone
                    one.set_result(came)

    async def reload(self) -> Reloaded:
        """Read, decide, do; what came of it."""
        try:
            new, todo = await self._wanted()
        except MuxdError as error:
            return self._refused(error.message)
        self.config = new
        if self.drop_ins is not None:
            self.drop_ins.since.clear()
        failed = await self._perform(todo)
        done = ", ".join(str(edit) for edit in todo if str(edit) not in failed) or "no model changes"
        summary = "; ".join([done, *(f"{edit} failed: {why}" for edit, why in failed.items())])
        if failed:
            _log.error("not all of the configuration could be had: %s", summary)
        self.events.add("reload", detail=summary)
        return Reloaded(not failed, f"configuration reloaded: {summary}")

    def _refused(self, why: str) -> Reloaded:
        _log.error("configuration not reloaded, nothing has changed; mend it and send SIGHUP again: %s", why)
        self.events.add("reload refused", detail=why)
        return Reloaded(False, f"configuration not reloaded: {why}")

    # ---- what is refused, before anything is done -------------------------------------------------

    async def _wanted(self) -> tuple[Config, list[Edit]]:
        """The settings already changed. Raises MuxdError, nothing changed."""
        if self.source is None:
            raise ConfigError("this muxd was started without a file; restart muxd with one")
        new = await asyncio.to_thread(self.source.read)
        if not new.model:
            raise ConfigError(f"{self.source.file}: no [[model]] is left; to end muxd, `muxctl stop`")
        changed = settings(self.config, new, self.source.file)
        caps = any(site.device.caps for site in self.roster.sites.values())
        todo = edits(self._before(), new.model, caps=caps)
        await self._check_folders(todo, self.source.file)
        self._check_guarantees(new, todo, self.source.file)
        self._set(changed, self.source.file)
        return new, todo

    def _before(self) -> list[ModelConfig]:
        """What the files said when they were read, and what was kept and dropped since."""
        before: dict[str, ModelConfig | None] = {model.name: model for model in self.config.model}
        if self.drop_ins is not None:
            before |= self.drop_ins.since
        return [model for model in before.values() if model is not None]

    async def _check_folders(self, todo: Sequence[Edit], where: Path) -> None:
        """What cannot be read is refused while what serves still does."""
        for edit in todo:
            if edit.what in ("add", "renew"):
                probe = Entry(edit.model)
                await self.roster.read(probe)
                if probe.error:
                    raise ConfigError(f"{where}: model.path ({probe.name}): {probe.error}")

    def _check_guarantees(self, new: Config, todo: Sequence[Edit], where: Path) -> None:
        """With the pools as they are, and beside models of no file and what operators have changed."""
        served = [one for one in self.roster.entries.values() if one.lane is not None]
        models = outcome([replace(one.config, quota=one.quota) for one in served], todo)
        pools = {name: site.arena.nbytes for name, site in self.roster.sites.items()}
        check_quotas(replace(new, model=models), where, pools)

    def _set(self, changed: Sequence[Setting], where: Path) -> None:
        """The policy first: it alone can be refused, while requests are served."""
        for setting in sorted(changed, key=lambda one: one.key != "scheduler.policy"):
            match setting.key:
                case "scheduler.policy":
                    self._set_policy(setting.value, where)
                case "server.log_level":
                    logging.getLogger().setLevel(setting.value.upper())
                case "server.shutdown_grace":
                    pass  # it is asked for when muxd ends

    def _set_policy(self, name: str, where: Path) -> None:
        if all(site.unit.policy == name for site in self.roster.sites.values()):
            return  # an operator was quicker
        try:
            self.set_policy(name)
        except MuxdError as error:
            why = error.message.removeprefix("policy: ")
            raise ConfigError(f"{where}: scheduler.policy: {why}, or restart muxd") from None

    # ---- what is done -----------------------------------------------------------------------------

    async def _perform(self, todo: Sequence[Edit]) -> dict[str, str]:
        """Everything that can be; the others by name, and why not."""
        failed: dict[str, str] = {}
        await self.roster.calm()  # a model that moves takes its settings along when it begins to
        late = self._quotas([edit for edit in todo if edit.what == "quota"])
        for edit in todo:
            if edit.what != "quota":
                try:
                    await self._do(edit)
                except MuxdError as error:
                    failed[str(edit)] = error.message
        # A guarantee may have needed what those had who are gone now.
        return failed | {str(edit): why for edit, why in self._quotas([edit for edit, _ in late])}

    def _quotas(self, todo: list[Edit]) -> list[tuple[Edit, str]]:
        """As long as some take: a guarantee may need what another gives up. Those that do not, and why."""
        while True:
            failed: list[tuple[Edit, str]] = []
            for edit in todo:
                entry = self._adopt(edit.model)
                try:
                    if entry.lane is not None:
                        self.set_quota(edit.model)
                except MuxdError as error:
                    failed.append((edit, error.message))
            if not failed or len(failed) == len(todo):
                return failed
            todo = [edit for edit, _ in failed]

    async def _do(self, edit: Edit) -> None:
        """Raises MuxdError."""
        model = edit.model
        await self.roster.calm()
        match edit.what:
            case "note":
                self._adopt(model)
            case "share":
                self.roster.give_share(self._adopt(model))
            case "unload":
                await self._unload(model.name)
            case "move":
                entry = self._adopt(model)
                if entry.state == "ready" and model.device not in ("", entry.device):
                    await self._change(
                        partial(self.roster.move, model.name, model.device, "by the configuration")
                    )
            case "renew":
                away = self.roster.entries[model.name].state == "unloaded"
                await self._bring_in(model, only_adopt=away)
            case "add":
                await self._bring_in(model)

    async def _bring_in(self, model: ModelConfig, *, only_adopt: bool = False) -> None:
        """Serve it by its new settings. ``only_adopt``: an operator has unloaded it, and may load it."""
        self.observer.aim(model.name, Slo.of(model))
        known = self.roster.entries.get(model.name)
        if known is None:
            adapters = self.config.adapters(model.name)
            for one in adapters:
                self._watch(one)
            return await self._change(partial(self.roster.add, model, adapters=adapters, keep=True))
        if known.config != model or known.adapters != self.config.adapters(model.name):
            await self._unload(model.name)
        entry = self._adopt(model)
        if not only_adopt and entry.state in ("unloaded", "failed"):
            await self._change(partial(self.roster.load, model.name, model.device))

    def _adopt(self, model: ModelConfig) -> Entry:
        """Its settings as they are now, and those of its adapters; of an adapter its base."""
        self.observer.aim(model.name, Slo.of(model))
        entry = self.roster.entries[model.base or model.name]
        entry.adapters = self.config.adapters(entry.name)
        for one in entry.adapters:
            self._watch(one)
        if model.lora:
            return entry
        if entry.config.resident != model.resident:
            self.roster.pin(model.name, model.resident == "always")
        entry.config = model
        if entry.lane is not None:
            entry.lane.adopt(model)
        return entry

    def _watch(self, adapter: ModelConfig) -> None:
        self.observer.aim(adapter.name, Slo.of(adapter))
        self.roster.gauges.watch_adapter(adapter.name)

    async def _unload(self, name: str) -> None:
        await self.roster.calm()
        if self.roster.entries[name].state != "unloaded":
            await self._change(partial(self.roster.unload, name, now=False))

    async def _change(self, begin: Callable[[], Operation]) -> None:
        """To its end. Raises the MuxdError it ended with."""
        await self.roster.calm()
        async for _ in begin().watch():
            pass
