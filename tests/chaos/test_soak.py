"""Mixed load for a long while: whatever is asked ends in exactly one way, and nothing of the daemon grows.

Chats, completions, answers held to a form, embeddings, clients that leave and clients that do not read, of
models that are always there and of models that wake and sleep. ``MUXD_SOAK`` says for how many seconds (40
unless told, 1,200 for ``make soak``), ``MUXD_SOAK_SEED`` draws another course, ``MUXD_SOAK_OUT`` is a folder
for its table, picture and JSON. After a warm-up of a quarter, during which the daemon's journals are full
already, each quantity of each role of process may rise by no more than ``soak_report`` says.
"""

import asyncio
import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from support import leaks
from support.churn import clients
from support.churn_books import series
from support.live import LiveDaemon, live
from support.shared import until
from support.soak_clients import LOGGED, Sent
from support.soak_report import endings, judged, now, table, write
from support.soaked import ASLEEP, AWAKE, EMBEDS, Soak, config, folders

SECONDS = float(os.environ.get("MUXD_SOAK", "40"))
SEED = int(os.environ.get("MUXD_SOAK_SEED", "1"))
OUT = os.environ.get("MUXD_SOAK_OUT", "")


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 600)
def test_a_long_while_under_load_leaves_nothing_behind(tmp_path: Path) -> None:
    with live(config(folders(tmp_path)), tmp_path) as daemon:
        pinned = {model: daemon.workers()[model] for model in AWAKE}
        before = leaks.descriptors(daemon.process.pid)
        soak, text = asyncio.run(_played(daemon))
        rows = judged(soak.looks, SECONDS)
        woken = sum(event.kind == "woken" for event in daemon.admin.events())
        facts = {
            "title": f"{SECONDS:.0f} s of mixed load, {now()}",
            "requests": len(soak.sent),
            "endings": endings(soak.sent),
            "wakes remembered": woken,
            "processes at once": dict(soak.most),
        }
        print(json.dumps(facts, indent=1), table(rows), sep="\n")
        if OUT:
            write(Path(OUT), soak.looks, rows, facts)
        _check_endings(daemon, soak.sent, text)
        until(lambda: daemon.admin.audit().held_blocks == 0)
        assert daemon.admin.audit().fault == ""
        assert {model: daemon.workers()[model] for model in AWAKE} == pinned
        assert woken
        # A model that is there has its weights, its process, its lifelines.
        after = leaks.descriptors(daemon.process.pid)
        assert len(after) <= len(before) + 8, sorted(after.values())
        assert [row for row in rows if not row.flat] == []
        assert "Traceback" not in daemon.log
        assert "CRITICAL" not in daemon.log
        print("each request ended in one way, by client, log and counters; the audit is clean; nothing grew")


async def _played(daemon: LiveDaemon) -> tuple[Soak, str]:
    async with clients(daemon.url) as session:
        soak = Soak(daemon, session, SECONDS, SEED)
        await soak.run()
        async with session.get("/metrics") as answer:
            return soak, await answer.text()


def _check_endings(daemon: LiveDaemon, sent: list[Sent], text: str) -> None:
    """One line of the log for each, which says what its client saw; the counters agree."""
    lines = re.findall(r"id=(soak-\d+) .*outcome=(\w+)", daemon.log)
    logged = dict(lines)
    assert len(logged) == len(lines), "a request has two lines"
    for one in sent:
        assert one.ending is not None, one
        assert logged.get(one.id) in LOGGED[one.ending], (one, logged.get(one.id))
    endings = Counter(one.ending for one in sent)
    assert all(endings[kind] for kind in ("served", "left", "cut off")), endings
    counted = series(text, "muxd_http_requests_total")
    asked = {one.path for one in sent}
    assert sum(n for key, n in counted.items() if asked & set(key)) == len(logged)
    requests = daemon.status().requests
    assert (requests.running, requests.waiting, requests.failed) == (0, 0, 0)
    assert {row.name for row in daemon.admin.models()} == {*AWAKE, *ASLEEP, EMBEDS}
