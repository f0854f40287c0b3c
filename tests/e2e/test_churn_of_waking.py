"""More models than memory on a real daemon, and trouble in the middle of waking: at the end nothing is lost,
doubled or left, and everybody is served again.

Six tiny models with room for two, host memory for two more. Workers are killed and stopped while they wake
(and otherwise), folders go and come back, the process that forks workers is killed, clients leave while they
wait. ``MUXD_CHURN_SECONDS`` and ``MUXD_CHURN_SEED`` as in ``test_churn.py``.
"""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import aiohttp
import pytest
from support import leaks
from support.churn import Asked, ask, clients, letters
from support.churn_books import check_answers, check_both_sides, why
from support.live import LiveDaemon
from support.tiny import tiny_served
from support.where import Where, on

from muxd.admin.schemas import SleepModel, WakeModel
from muxd.errors import MuxdError

SECONDS = float(os.environ.get("MUXD_CHURN_SECONDS", "25"))
SEED = int(os.environ.get("MUXD_CHURN_SEED", "1"))
NAMES = ["a", "b", "c", "d", "e", "f"]
PROMPTS, PROMPT, ANSWER = 5, 60, 60  # of each model; tokens at most
POOL = 4 << 20
TURN = 90.0  # seconds within which everybody is served when nothing goes wrong any more
JOURNAL = 200  # requests after which it is asked how they ended, before it forgets them


def config(models: dict[str, Path]) -> str:
    weights = max((folder / "model.safetensors").stat().st_size for folder in models.values())
    text = f'[[device]]\nname = "cpu:0"\npool = "{POOL}"\nmemory = "{POOL + weights * 5 // 2}"\n'
    text += f'[residency]\nhost_memory = "{weights * 5 // 2}"\nleast = 0.2\npatience = 0.5\n'
    return text + "".join(
        f'[[model]]\nname = "{name}"\npath = "{path}"\ndtype = "float32"\nmax_queue = 10\n'
        for name, path in models.items()
    )


class Churn:
    """One run, as ``support.churn_books.Played``. ``done`` counts what was done to the daemon."""

    def __init__(self, daemon: LiveDaemon, models: dict[str, Path], session: aiohttp.ClientSession):
        self.daemon, self.models, self.session = daemon, models, session
        self.draw = random.Random(SEED)
        self.asked: list[Asked] = []
        self.states: dict[str, list[str]] = {}
        self.done: Counter[str] = Counter()
        self.prompts = {
            name: [
                [self.draw.randrange(3, 250) for _ in range(self.draw.randrange(4, PROMPT))]
                for _ in range(PROMPTS)
            ]
            for name in models
        }
        self.alone: dict[tuple[str, int], list[int]] = {}
        self._letters = letters(models["a"])
        self._ids = count()
        self._over = asyncio.Event()

    def expected(self, one: Asked) -> list[int]:
        return self.alone[one.model, one.index][: one.tokens]

    def request(self, model: str, index: int, tokens: int) -> Asked:
        one = Asked(f"churn-{next(self._ids)}", model, self.prompts[model][index], index, tokens)
        self.asked.append(one)
        return one

    async def run(self) -> None:
        for model, index in ((model, index) for model in self.models for index in range(PROMPTS)):
            one = await ask(self.session, self.request(model, index, ANSWER))
            assert one.outcome == "served", (one.status, one.code)
            self.alone[model, index] = one.answers[0]
        asyncio.get_running_loop().call_later(SECONDS, self._over.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arrive(group))
            for trouble in (self._kill, self._stop, self._take_folders, self._kill_zygote, self._order):
                group.create_task(trouble())
            group.create_task(self._note())
        await self._settle()

    async def _settle(self) -> None:
        """Nothing goes wrong any more: everybody gets its turn."""
        async with asyncio.timeout(TURN):
            for model in [*self.models, *self.models]:
                while (one := await ask(self.session, self.request(model, 0, 1))).outcome != "served":
                    assert one.code, one
                    await asyncio.sleep(0.5)
        await self._look_up(0)

    async def _pause(self, seconds: float) -> bool:
        """False when it is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return not self._over.is_set()

    async def _note(self) -> None:
        while await self._pause(1.0):
            await self._look_up(JOURNAL)

    async def _look_up(self, keep: int) -> None:
        """How requests ended, but the last ``keep``, which may go on; so may who waits for its model."""
        for one in self.asked[: len(self.asked) - keep]:
            if one.id in self.states or not one.outcome:
                continue
            found = await asyncio.to_thread(why, self.daemon, one.id)
            if not {"waiting", "running"} & set(found):
                self.states[one.id] = found

    # ---- clients ----------------------------------------------------------------------------------

    async def _arrive(self, group: asyncio.TaskGroup) -> None:
        while await self._pause(self.draw.expovariate(6.0)):
            for _ in range(self.draw.choice([1, 1, 1, 6])):
                group.create_task(ask(self.session, self._someone()))

    def _someone(self) -> Asked:
        """Three in four ask for the models of the moment, which change."""
        draw = self.draw
        first = int(asyncio.get_running_loop().time() / 5) % len(NAMES)
        few = [NAMES[first], NAMES[(first + 1) % len(NAMES)]]
        model = draw.choice(few if draw.random() < 0.75 else NAMES)
        one = self.request(model, draw.randrange(PROMPTS), draw.randrange(1, ANSWER + 1))
        one.stream = draw.random() < 0.6
        if draw.random() < 0.25:
            one.cut = draw.randrange(1, 20) if one.stream else draw.uniform(0.01, 1.0)
        return one

    # ---- trouble ----------------------------------------------------------------------------------

    async def _each(self, pause: tuple[float, float], trouble: Callable[[], Awaitable[None]]) -> None:
        while await self._pause(self.draw.uniform(*pause)):
            await trouble()

    async def _someones(self) -> tuple[str, int] | None:
        """A worker, one that wakes before any other."""
        rows = await asyncio.to_thread(self.daemon.admin.ps)
        states = {row.name: row.state for row in await asyncio.to_thread(self.daemon.admin.models)}
        workers = [(row.model, row.pid) for row in rows if row.role == "worker" and row.pid]
        waking = [one for one in workers if states.get(one[0]) == "waking"]
        if not workers or (not waking and self.draw.random() < 0.7):
            return None
        self.done["found waking" if waking else "found awake"] += 1
        return self.draw.choice(waking or workers)

    async def _kill(self) -> None:
        async def kill() -> None:
            if (found := await self._someones()) is not None:
                with suppress(ProcessLookupError):
                    os.kill(found[1], signal.SIGKILL)
                    self.done["kills"] += 1
                await self._pause(2.0)

        await self._each((0.02, 0.1), kill)

    async def _stop(self) -> None:
        async def stop() -> None:
            if (found := await self._someones()) is not None:
                with suppress(ProcessLookupError):
                    os.kill(found[1], signal.SIGSTOP)
                    self.done["stops"] += 1
                    await self._pause(self.draw.uniform(0.1, 2.0))
                    os.kill(found[1], signal.SIGCONT)
                await self._pause(2.0)

        await self._each((0.02, 0.1), stop)

    async def _take_folders(self) -> None:
        async def take() -> None:
            folder = self.models[self.draw.choice(NAMES)]
            file, away = folder / "model.safetensors", folder.with_name(f"{folder.name}.away")
            whole = self.draw.random() < 0.5
            if whole:
                folder.rename(away)
            else:
                kept = file.read_bytes()
                file.write_bytes(kept[: self.draw.randrange(len(kept))])
            self.done["folders gone" if whole else "files damaged"] += 1
            await self._pause(self.draw.uniform(0.2, 2.0))
            if whole:
                away.rename(folder)
            else:
                file.write_bytes(kept)

        await self._each((0.5, 3.0), take)

    async def _kill_zygote(self) -> None:
        async def kill() -> None:
            rows = await asyncio.to_thread(self.daemon.admin.ps)
            for pid in {leaks.parent(row.pid) for row in rows if row.role == "worker" and row.pid}:
                if "muxd.worker.zygote" in leaks.describe(pid):  # else it has been killed, and init has them
                    os.kill(pid, signal.SIGKILL)
                    self.done["zygotes killed"] += 1

        await self._each((6.0, 12.0), kill)

    async def _order(self) -> None:
        """An operator has models sleep and wake."""

        async def order() -> None:
            verb = self.draw.choice(["sleep", "wake"])
            model, now, admin = self.draw.choice(NAMES), self.draw.random() < 0.5, self.daemon.admin
            with suppress(MuxdError):  # one that is not there, or comes just now
                if verb == "sleep":
                    await asyncio.to_thread(lambda: list(admin.sleep(SleepModel(model, now))))
                else:
                    await asyncio.to_thread(lambda: list(admin.wake(WakeModel(model))))
                self.done[f"{verb}s"] += 1

        await self._each((0.5, 2.0), order)


def check_memory(daemon: LiveDaemon, models: dict[str, Path]) -> None:
    """Weights are there for who is awake, and once for who sleeps in host memory; nothing else is."""
    books = daemon.admin.audit()
    assert (books.fault, books.held_blocks) == ("", 0)
    rows = daemon.admin.models()
    held = [row.name for row in rows if row.state == "ready" or row.detail.startswith("in host memory")]
    assert len(daemon.workers()) == sum(row.state == "ready" for row in rows) <= 2
    assert len(held) <= 4
    memory = [name.rpartition(":")[2].split()[0] for name in leaks.memfds(daemon.process.pid)]
    assert memory == ["muxd-pool", *["muxd-weights"] * len(held)]


@pytest.mark.slow
@on("cpu")
@pytest.mark.timeout(SECONDS * 2 + 300)
def test_whatever_goes_wrong_while_models_wake(where: Where, tmp_path: Path) -> None:
    models = {name: tiny_served(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    with where.live(config(models), tmp_path) as daemon:
        before = leaks.descriptors(daemon.process.pid)
        churn, text = asyncio.run(_run(daemon, models))
        after = leaks.descriptors(daemon.process.pid)
        outcomes = Counter(one.outcome for one in churn.asked)
        wakes = sum(event.kind == "woken" for event in daemon.admin.events())
        report = {"outcomes": dict(outcomes), "done": dict(churn.done), "wakes remembered": wakes}
        print(json.dumps(report, indent=1))
        check_answers(churn)
        check_both_sides(churn, text)
        check_memory(daemon, models)
        assert outcomes["served"]
        assert outcomes["cancelled"]
        assert all(churn.done[what] for what in ("kills", "stops", "folders gone", "files damaged")), (
            churn.done
        )
        assert churn.done["found waking"] or SECONDS < 300  # a few faults may all have met others
        # A model that is there has its weights, its process, its lifelines.
        assert len(after) <= len(before) + 8, sorted(after.values())
        assert "Traceback" not in daemon.log
        assert "CRITICAL" not in daemon.log


async def _run(daemon: LiveDaemon, models: dict[str, Path]) -> tuple[Churn, str]:
    async with clients(daemon.url) as session:
        churn = Churn(daemon, models, session)
        await churn.run()
        async with session.get("/metrics") as answer:
            return churn, await answer.text()


@pytest.mark.slow
@on("cpu")
def test_a_daemon_that_is_killed_while_models_wake_leaves_nothing(where: Where, tmp_path: Path) -> None:
    """At any moment of a wake; the next daemon serves."""
    models = {name: tiny_served(tmp_path / name, seed) for seed, name in enumerate(NAMES)}
    draw = random.Random(SEED)
    for _ in range(4):
        with where.live(config(models), tmp_path) as daemon:
            asyncio.run(_all_asked(daemon, draw.uniform(0.0, 0.6)))
            ours = set(daemon.workers().values())
            os.kill(daemon.process.pid, signal.SIGKILL)
            daemon.process.wait()
            assert all(leaks.gone(pid) for pid in ours)


async def _all_asked(daemon: LiveDaemon, seconds: float) -> None:
    """Every model is asked for; returns in the midst of it."""
    async with clients(daemon.url) as session:
        body = {"prompt": [5] * 8, "max_tokens": 400, "ignore_eos": True}
        asked = [
            asyncio.create_task(session.post("/v1/completions", json=body | {"model": name}))
            for name in NAMES
        ]
        await asyncio.sleep(seconds)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)
