"""A daemon under churn: clients that come and go while something is done to it, and what they saw of it."""

import asyncio
import random
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from muxd.admin.schemas import LoadModel
from muxd.errors import MuxdError
from support import leaks, tiny_models
from support.churn import Asked, ask, clients, letters
from support.churn_books import why
from support.live import LiveDaemon
from support.tiny import tiny_served

T = TypeVar("T")
PROMPT, ANSWER = 90, 60  # tokens at most


def folders(root: Path) -> dict[str, Path]:
    """a and c: two layers, two KV heads of 16. b: Gemma's sliding windows and one KV head of 64."""
    made = {"a": tiny_served(root / "a", 0), "b": root / "b", "c": tiny_served(root / "c", 5)}
    tiny_models.gemma3(made["b"], head_dim=64, query_pre_attn_scalar=64)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(made["a"] / file, made["b"] / file)
    return made


def config(models: dict[str, Path]) -> str:
    """300 blocks: a row holds 32 tokens of a and c, 8 of b. Short queues, so that some are refused."""
    pool = '[pool]\nbytes = "1200K"\nblock_bytes = 4096\n'
    scheduler = "[scheduler]\nlook_ahead = 8\nprefill_tokens = 96\nadapt_period = 1.0\n"
    settings = 'dtype = "float32"\nmax_queue = 10\n'
    return pool + scheduler + "".join(
        f'[[model]]\nname = "{name}"\npath = "{path}"\n{settings}' for name, path in models.items()
    )  # fmt: skip


class Churn:
    """One run of ``seconds``. ``asked`` is all that clients ever sent, ``done`` counts what was done to the
    daemon."""

    def __init__(
        self,
        daemon: LiveDaemon,
        models: dict[str, Path],
        session: aiohttp.ClientSession,
        seconds: float,
        seed: int,
    ):
        self.daemon, self.models, self.session = daemon, models, session
        self.draw = random.Random(seed)
        self.seconds = seconds
        self.asked: list[Asked] = []
        self.done: Counter[str] = Counter()
        self.states: dict[str, list[str]] = {}  # request -> how its choices ended, by the daemon's journal
        self.prompts = {model: self._prompts() for model in models}
        self.alone: dict[tuple[str, int], list[int]] = {}
        self._letters = letters(models["a"])
        self._ids = count()
        self._over, self._open = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._clients: set[asyncio.Task[Asked]] = set()

    def _prompts(self) -> list[list[int]]:
        """Every second one begins like the others of its kind, so that rows are shared."""
        same = [self.draw.randrange(3, 250) for _ in range(64)]
        own = [
            [self.draw.randrange(3, 250) for _ in range(self.draw.randrange(4, PROMPT))] for _ in range(14)
        ]
        return [(same + ids)[:PROMPT] if i % 2 else ids for i, ids in enumerate(own)]

    def request(self, model: str, index: int, tokens: int) -> Asked:
        one = Asked(f"churn-{next(self._ids)}", model, self.prompts[model][index], index, tokens)
        self.asked.append(one)
        return one

    async def run(self) -> None:
        for model, prompts in self.prompts.items():
            for index in range(len(prompts)):
                one = await ask(self.session, self.request(model, index, ANSWER))
                assert one.outcome == "served", (one.status, one.code)
                self.alone[model, index] = one.answers[0]
        asyncio.get_running_loop().call_later(self.seconds, self._over.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arrive(group))
            for trouble in self.troubles():
                group.create_task(trouble)
        await self._settle()

    def troubles(self) -> "Iterable[Coroutine[Any, Any, None]]":
        """What is done meanwhile, each until ``_pause`` says that it is over."""
        return ()

    async def _settle(self) -> None:
        """All models there again, and nothing left of requests whose clients have gone."""
        await self._flush()
        self.daemon.admin.set_policy("mux")
        if "c" not in self.daemon.workers():
            list(self.daemon.admin.load(LoadModel("c")))
        await self._flush()

    async def _pause(self, seconds: float) -> bool:
        """False when it is over."""
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except TimeoutError:
            return True
        return False

    # ---- clients ----------------------------------------------------------------------------------

    async def _arrive(self, group: asyncio.TaskGroup) -> None:
        """In bursts, while the door is open."""
        while await self._pause(self.draw.expovariate(8.0)):
            await self._open.wait()
            for _ in range(self.draw.choice([1, 1, 1, 1, 8])):
                task = group.create_task(ask(self.session, self._someone()))
                self._clients.add(task)
                task.add_done_callback(self._clients.discard)

    def _someone(self) -> Asked:
        draw, model = self.draw, self.draw.choice(["a", "b", "b", "b", "c"])
        index = draw.randrange(len(self.prompts[model]))
        one = self.request(model, index, draw.randrange(1, ANSWER + 1))
        one.n = draw.choice([1, 1, 1, 1, 2, 3])
        one.stream = draw.random() < 0.7
        if draw.random() < 0.2:
            known = [self._letters[t] for t in self.alone[model, index] if t in self._letters]
            one.stop = draw.choice(known or ["q"])
        if draw.random() < 0.15:
            one.cut = draw.randrange(1, 40) if one.stream else draw.uniform(0.01, 0.6)
        return one

    def expected(self, one: Asked) -> list[int]:
        """What it gets if nothing comes between: the answer alone, up to its stop string."""
        tokens = self.alone[one.model, one.index][: one.tokens]
        shown = [self._letters.get(token) for token in tokens]
        return tokens[: shown.index(one.stop) + 1] if one.stop and one.stop in shown else tokens

    async def _flush(self) -> None:
        """Behind whatever a model still computes for clients that have gone; then look how they all ended,
        before the journal forgets it."""
        for model in self.models:
            await ask(self.session, self.request(model, 0, 1))
        for one in self.asked:
            if one.id not in self.states:
                self.states[one.id] = await asyncio.to_thread(why, self.daemon, one.id)

    @asynccontextmanager
    async def _idle(self) -> AsyncIterator[None]:
        """Nobody asks, and how all ended who did is known; the door is open again afterwards."""
        self._open.clear()
        while self._clients:
            await asyncio.wait(self._clients)
        await self._flush()
        yield
        self._open.set()

    async def _try(self, what: str, call: Callable[[T], object], wanted: T) -> None:
        """What is refused (busy, not there, no room) must be refused in words."""
        try:
            await asyncio.to_thread(call, wanted)
            self.done[what] += 1
        except MuxdError as error:
            self.done[f"{what} refused: {re.sub('[0-9]+', 'N', error.message)[:60]}"] += 1


def every_step(call: Callable[[T], Iterable[object]]) -> Callable[[T], object]:
    return lambda wanted: list(call(wanted))


Course = TypeVar("Course", bound=Churn)


async def played(
    daemon: LiveDaemon, make: Callable[[aiohttp.ClientSession], Course]
) -> tuple[Course, str, dict[int, str], dict[int, str]]:
    """Run it; with it the daemon's series afterwards, and its descriptors before and after."""
    before = leaks.descriptors(daemon.process.pid)
    async with clients(daemon.url) as session:
        churn = make(session)
        await churn.run()
        async with session.get("/metrics") as answer:
            text = await answer.text()
    return churn, text, before, leaks.descriptors(daemon.process.pid)
