"""The hosts whose models may change their host: what they say of themselves, orders to them, and the files
that they serve, which follow. Used on one event loop; the search runs in a thread."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from muxd.errors import MuxdError
from muxd.placement.host_view import HostView
from muxd.placement.replan import Policy
from muxd.ray.health import lost
from muxd.ray.plan_text import beside, without
from muxd.ray.replanning import ChangedHost, HostsReplanner, Order
from muxd.ray.reports import HostReport, Seen
from muxd.ray.settings import model_names

_log = logging.getLogger(__name__)
_OLD = 20.0  # seconds: a view is of no use any more


class Moving:
    """``files``: of the plan, name -> text; a model that has moved is in its new host's. ``name``: of the
    orders' ids."""

    def __init__(self, files: Mapping[str, str], name: str, policy: Policy | None = None):
        self.files = dict(files)
        self._replanner = HostsReplanner(name, policy)
        self._views: dict[str, tuple[HostView, float]] = {}
        self._plans: dict[str, str] = {}  # host -> file
        self._settled = float("-inf")  # when the last order was done: older views are of before
        self._told = ""

    def viewed(self, host: str, view: HostView, now: float) -> None:
        self._views[host] = view, now

    def orders(self, host: str) -> list[Order]:
        """What it has not said to be done."""
        return self._replanner.orders(host)

    def done(self, id: str, error: str, now: float) -> None:
        """``error``: why it could not be; "": it is."""
        self._settled = now
        if error:
            _log.warning("a move was not carried out: %s", error)
        if (moved := self._replanner.done(id, failed=bool(error))) is not None:
            self._write(moved)

    async def look(self, seen: Iterable[Seen], now: float) -> None:
        """Once; begins what pays. Logs why nothing can be planned."""
        able = self._able(seen)
        self._plans = {report.host: report.plan for report in able}
        if self._replanner.busy:
            if not self._replanner.hosts <= set(self._plans):
                _log.warning("a host is lost or out in the midst of moves: they are given up")
                self._replanner.abandon()
                self._settled = now
            return
        views = self._fresh(now)
        if views is None:
            return
        named = {host: set(model_names(self.files[plan])) for host, plan in self._plans.items()}
        self._replanner.mend(views, named)
        if self._replanner.busy:
            return
        try:
            moves = await asyncio.to_thread(self._replanner.look, views, now)
            self._replanner.begin(views, moves, now)
        except MuxdError as error:
            if error.message != self._told:
                _log.warning("no new plan: %s", error.message)
            self._told = error.message
            return
        for model, (host, device) in moves.items():
            _log.info("%s goes to %s of host %s", model, device, host)

    def _able(self, seen: Iterable[Seen]) -> list[HostReport]:
        """Those whose muxd serves a file of the plan that no other host serves: hosts with the same one are
        copies, and a muxd that was there before has settings of its own."""
        there = [one.report for one in seen if not lost(one)]
        holders = Counter(report.plan for report in there)
        return [
            report
            for report in there
            if report.taking == "ok"
            and not report.adopted
            and report.plan in self.files
            and holders[report.plan] == 1
        ]

    def _fresh(self, now: float) -> dict[str, HostView] | None:
        """Of all of them; None while one has not told of itself since the last order was done."""
        since = max(self._settled, now - _OLD)
        found = {host: self._views[host] for host in self._plans if host in self._views}
        if len(found) < len(self._plans) or any(came <= since for _, came in found.values()):
            return None
        return {host: view for host, (view, _) in found.items()}

    def _write(self, moved: ChangedHost) -> None:
        source, to = self._plans.get(moved.source), self._plans.get(moved.to)
        if source is None or to is None:
            return  # it is lost; whoever comes for it serves the file as it was
        try:
            grown = beside(self.files[to], moved.config)
            shrunk = without(self.files[source], moved.config.name)
        except MuxdError as error:
            _log.warning(
                "%s has moved, the plan's files stay as they are: %s", moved.config.name, error.message
            )
            return
        self.files |= {to: grown, source: shrunk}
