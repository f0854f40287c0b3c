"""One daemon for several tests, put back between two of them as it was before the first."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from muxd.admin.schemas import LoadModel, ModelInfo, MoveModel, QuotaChange, QuotaInfo, UnloadModel
from support import leaks
from support.live import LiveDaemon
from support.where import Where

_LIMIT = 120.0  # seconds until a daemon must have come to rest
_AWAY = ("unloaded", "failed")


class Shared:
    """Starts the daemon when a test first asks for it. One that cannot be put back is ended, and the test
    that left it so fails; the next gets a new one."""

    def __init__(self, where: Where, config: str, folder: Path):
        self.where, self.config, self.folder = where, config, folder
        self._life = ExitStack()
        self._daemon: LiveDaemon | None = None

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing that the tests before were excused for may outlive the daemon."""
        ours = family(self._daemon) if self._daemon else set()
        self._end()
        assert all(leaks.gone(pid) for pid in ours), "processes left by a shared daemon"

    @contextmanager
    def lent(self) -> Iterator[LiveDaemon]:
        """For one test. Then: at rest, models, policy and quotas as at first, and books that balance."""
        daemon = self._daemon or self._begin()
        yield daemon
        try:
            self._put_back(daemon)
            leaks.keep(family(daemon))
        except BaseException:
            self._end()
            raise

    def _begin(self) -> LiveDaemon:
        self._daemon = self._life.enter_context(self.where.live(self.config, self.folder))
        admin = self._daemon.admin
        self._models = {row.name: row for row in admin.models()}
        self._quotas = {row.model: row for row in admin.quota()}
        self._policy = admin.policy().policy
        return self._daemon

    def _end(self) -> None:
        self._daemon = None
        self._life.close()

    def _put_back(self, daemon: LiveDaemon) -> None:
        admin = daemon.admin
        until(lambda: _at_rest(daemon))
        for row in admin.models():
            if row.name not in self._models and row.state != "unloaded":
                list(admin.unload(UnloadModel(row.name, now=True)))
        for row in admin.models():
            if row.name in self._models:
                _restore(daemon, row, self._models[row.name].device)
        now = {row.name: row for row in admin.models()}
        assert all((now[name].state, now[name].device) == ("ready", row.device)
                   for name, row in self._models.items()), now  # fmt: skip
        if admin.policy().policy != self._policy:
            admin.set_policy(self._policy)
        for quota in admin.quota():
            if _terms(quota) != _terms(first := self._quotas[quota.model]):
                admin.set_quota(
                    QuotaChange(quota.model, str(first.min_bytes), str(first.max_bytes), first.weight)
                )
        books = admin.audit()
        assert (books.fault, books.held_blocks) == ("", 0)


def _at_rest(daemon: LiveDaemon) -> bool:
    """Nothing is asked, and no model comes, goes or moves."""
    requests = daemon.status().requests
    return not requests.running + requests.waiting and all(
        row.state in _AWAY or (row.state == "ready" and not row.detail.startswith("leaving"))
        for row in daemon.admin.models()
    )


def _restore(daemon: LiveDaemon, row: ModelInfo, device: str) -> None:
    """A model of the file, to be served where it was."""
    if row.state in _AWAY:
        list(daemon.admin.load(LoadModel(row.name, device=device)))
    elif row.device != device:
        list(daemon.admin.move(MoveModel(row.name, device)))


def _terms(row: QuotaInfo) -> tuple[int, int, float]:
    return row.min_bytes, row.max_bytes, row.weight


def family(daemon: LiveDaemon) -> set[int]:
    """The daemon, those it names as its own, and what these were started by."""
    named = {row.pid for row in daemon.admin.ps()}
    return {daemon.process.pid} | named | ({leaks.parent(pid) for pid in named} - {1, leaks.OURSELVES})


def until(true: Callable[[], bool]) -> None:
    """Asked again and again; a daemon has no event for being at rest."""
    end = time.monotonic() + _LIMIT
    while not true():
        assert time.monotonic() < end, f"not at rest after {_LIMIT:.0f} s"
        threading.Event().wait(0.02)
