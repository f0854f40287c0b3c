"""Everything at once against a real daemon, and at the end the books of both sides must agree.

Three small models in float32 share a pool too small for what is asked of them; clients leave, set stop
strings, want several choices; workers are killed, a model is unloaded and loaded, quotas and policies move.
``MUXD_CHURN_SECONDS`` (25 unless told) says for how long, the full run is 600 (``make churn``);
``MUXD_CHURN_SEED`` draws another course.
"""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Coroutine, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from support.churn_books import check_answers, check_both_sides, series
from support.churned import Churn, config, every_step, folders, played
from support.where import Where, on

from muxd.admin.schemas import LoadModel, QuotaChange, UnloadModel

SECONDS = float(os.environ.get("MUXD_CHURN_SECONDS", "25"))
SEED = int(os.environ.get("MUXD_CHURN_SEED", "1"))
POLICIES = ["temporal", "spatial", "fcfs", "round_robin", "mux"]
KILL_EVERY = 16.0  # seconds, models in turn: five deaths of one within 120 would be final


class Trouble(Churn):
    """Workers killed, a model unloaded and loaded, quotas and policies moved, each at its own pace."""

    def troubles(self) -> Iterable[Coroutine[Any, Any, None]]:
        return self._kill(), self._come_and_go(), self._move_quotas(), self._change_policies()

    async def _kill(self) -> None:
        await self._pause(5.0)
        for model in cycle("ab"):
            if pid := self.daemon.workers().get(model):
                os.kill(pid, signal.SIGKILL)
                self.done["kills"] += 1
            if not await self._pause(KILL_EVERY):
                return

    async def _come_and_go(self) -> None:
        while await self._pause(self.draw.uniform(1, 4)):
            now = self.draw.random() < 0.5
            await self._try("unloads", every_step(self.daemon.admin.unload), UnloadModel("c", now))
            await self._pause(self.draw.uniform(0.2, 1))
            await self._try("loads", every_step(self.daemon.admin.load), LoadModel("c"))

    async def _move_quotas(self) -> None:
        """Guarantees and ceilings that leave room for the longest request, under any policy."""
        while await self._pause(self.draw.uniform(0.5, 2)):
            least, weight = f"{self.draw.randrange(10)}%", self.draw.uniform(0.9, 1.1)
            change = QuotaChange(self.draw.choice("abc"), least, f"{self.draw.randrange(70, 101)}%", weight)
            await self._try("quotas", self.daemon.admin.set_quota, change)

    async def _change_policies(self) -> None:
        """When idle: the door is shut until it is."""
        for policy in cycle(POLICIES):
            if not await self._pause(6.0):
                return
            async with self._idle():
                await self._try("policies", self.daemon.admin.set_policy, policy)


@pytest.mark.slow
@on("cpu")
@pytest.mark.timeout(SECONDS * 2 + 300)
def test_nothing_is_lost_doubled_or_left(where: Where, tmp_path: Path) -> None:
    models = folders(tmp_path)
    with where.live(config(models), tmp_path) as daemon:
        churn, text, before, after = asyncio.run(
            played(daemon, lambda session: Trouble(daemon, models, session, SECONDS, SEED))
        )
        outcomes = Counter(one.outcome for one in churn.asked)
        preempted = series(text, "muxd_preemptions_total").total()
        report = {"outcomes": dict(outcomes), "done": dict(churn.done), "preempted": preempted}
        print(json.dumps(report, indent=1))
        check_answers(churn)
        check_both_sides(churn, text)
        books = daemon.admin.audit()
        assert (books.fault, books.held_blocks) == ("", 0)
        assert preempted
        # Nobody need fail: those whose worker was killed go on with the next one.
        assert all(outcomes[kind] for kind in ("served", "refused", "cancelled")), outcomes
        assert all(churn.done[what] for what in ("kills", "loads", "unloads", "quotas", "policies"))
        where.check_regions(daemon.process.pid, "pool", *["weights"] * len(models))
        assert len(daemon.workers()) == len(models)
        assert len(after) <= len(before) + 2, sorted(after.values())
        assert "Traceback" not in daemon.log
        assert "CRITICAL" not in daemon.log
