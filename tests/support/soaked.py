"""A course of mixed load against a daemon, and a look at all of its processes every few seconds."""

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from support import leaks
from support.live import LiveDaemon
from support.process_sizes import Sizes, mean, measure
from support.soak_clients import FORM, Sent, check, dawdle, send
from support.tiny import tiny_served

# What a daemon remembers is bounded, and until it is full the daemon grows: 10,000 requests that have ended,
# 20,000 batches, and as many looks at the pool as 200 seconds of work have, of 20 ms each.
KEPT = 10_000
AT_ONCE = 64  # choices of one request
BUSY = 300.0  # seconds; only before a long soak, which judges memory
LONG = 600.0
AWAKE, ASLEEP, EMBEDS = ["a", "b"], ["c", "d", "e"], "f"
POOL = 4 << 20
DAWDLE = 4.0  # seconds between two slow readers
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def folders(root: Path) -> dict[str, Path]:
    made = {name: tiny_served(root / name, seed) for seed, name in enumerate([*AWAKE, *ASLEEP, EMBEDS])}
    for folder in made.values():
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": TEMPLATE}))
    return made


def config(models: dict[str, Path]) -> str:
    """Device memory for two that are always there and two of the others, host memory for one more."""
    weights = max((folder / "model.safetensors").stat().st_size for folder in models.values())
    text = f'[[device]]\nname = "cpu:0"\npool = "{POOL}"\nmemory = "{POOL + weights * 9 // 2}"\n'
    text += f'[residency]\nhost_memory = "{weights * 3 // 2}"\nleast = 0.2\npatience = 0.5\n'
    text += "[limits]\nwrite_timeout = 2.0\n"
    for name, path in models.items():
        text += f'[[model]]\nname = "{name}"\npath = "{path}"\ndtype = "float32"\nmax_queue = 64\n'
        text += 'resident = "always"\n' if name in AWAKE else ""
        text += 'pooling = "mean"\n' if name == EMBEDS else ""
    return text


class Soak:
    """One run of ``seconds``. ``looks``: when (seconds), and what each role's processes take then."""

    def __init__(self, daemon: LiveDaemon, session: aiohttp.ClientSession, seconds: float, seed: int):
        self.daemon, self.session, self.seconds = daemon, session, seconds
        self.draw = random.Random(seed)
        self.sent: list[Sent] = []
        self.looks: list[tuple[float, dict[str, Sizes]]] = []
        self.most: Counter[str] = Counter()  # processes of a role at once
        self._ids = count()
        self._over = asyncio.Event()
        self._began = 0.0

    async def run(self) -> None:
        await self._fill()
        if self.seconds >= LONG:
            await asyncio.gather(*(self._busy(model, time.monotonic() + BUSY) for model in AWAKE))
        self._began = time.monotonic()
        asyncio.get_running_loop().call_later(self.seconds, self._over.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look())
            group.create_task(self._arrive(group))
            group.create_task(self._dawdle())
        await self._settle()

    async def _fill(self) -> None:
        body = {"prompt": [5] * 8, "max_tokens": 1, "n": AT_ONCE, "ignore_eos": True}
        for number in range(KEPT // AT_ONCE + 1):
            await self._send("/v1/completions", {"model": AWAKE[number % 2], **body})

    async def _busy(self, model: str, end: float) -> None:
        """One stream after the other."""
        body = {"model": model, "prompt": [5] * 8, "max_tokens": 400, "ignore_eos": True, "stream": True}
        while time.monotonic() < end:
            await self._send("/v1/completions", body)

    async def _settle(self) -> None:
        """Behind whatever is still computed for who has left."""
        for model in [*AWAKE, *ASLEEP]:
            one = await self._send("/v1/completions", {"model": model, "prompt": [5], "max_tokens": 1})
            assert one.ending == "served", one
        self.daemon.admin.audit()

    async def _pause(self, seconds: float) -> bool:
        """False when it is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return not self._over.is_set()

    # ---- looks ------------------------------------------------------------------------------------

    async def _look(self) -> None:
        period = min(5.0, self.seconds / 40)
        while await self._pause(period):
            found = await asyncio.to_thread(self._measure)
            self.looks.append((time.monotonic() - self._began, found))

    def _measure(self) -> dict[str, Sizes]:
        """Those that come and go on average, as one of them."""
        roles: dict[str, list[Sizes]] = {}
        for role, pid in processes(self.daemon):
            if (sizes := measure(pid)) is not None:
                roles.setdefault(role, []).append(sizes)
        self.most |= Counter({role: len(found) for role, found in roles.items()})
        return {role: mean(found) for role, found in roles.items()}

    # ---- clients ----------------------------------------------------------------------------------

    async def _arrive(self, group: asyncio.TaskGroup) -> None:
        while await self._pause(self.draw.expovariate(6.0)):
            for _ in range(self.draw.choice([1, 1, 1, 5])):
                group.create_task(self._someone())

    async def _send(self, path: str, body: dict[str, Any], leave: float | None = None) -> Sent:
        one = Sent(f"soak-{next(self._ids)}", path, body, leave)
        self.sent.append(one)
        await send(self.session, one)
        check(one)
        return one

    async def _someone(self) -> None:
        sorts = [self._chat, self._complete, self._hold_to_form, self._embed]
        await self.draw.choices(sorts, [8, 8, 4, 3])[0]()

    def _body(self, models: list[str]) -> dict[str, Any]:
        draw = self.draw
        return {
            "model": draw.choice(models),
            "max_tokens": draw.randrange(1, 60),
            "stream": draw.random() < 0.6,
        }

    def _popular(self) -> list[str]:
        """One in five is for those that sleep; of these the one of the moment, which changes."""
        moment = int((time.monotonic() - self._began) / 5) % len(ASLEEP)
        return [ASLEEP[moment]] if self.draw.random() < 0.2 else AWAKE

    def _words(self) -> str:
        return "".join(self.draw.choice("abcdefgh ") for _ in range(self.draw.randrange(4, 90)))

    def _leaves(self, stream: bool) -> float | None:
        if self.draw.random() >= 0.15:
            return None
        return self.draw.randrange(1, 30) if stream else self.draw.uniform(0.01, 0.5)

    async def _chat(self) -> None:
        body = self._body(self._popular())
        body["messages"] = [{"role": "user", "content": self._words()}]
        await self._send("/v1/chat/completions", body, self._leaves(body["stream"]))

    async def _complete(self) -> None:
        body = self._body(self._popular()) | {"prompt": self._words(), "ignore_eos": True}
        await self._send("/v1/completions", body, self._leaves(body["stream"]))

    async def _hold_to_form(self) -> None:
        body = self._body(AWAKE) | {"prompt": self._words(), "structured_outputs": {"regex": FORM}}
        await self._send("/v1/completions", body)

    async def _embed(self) -> None:
        await self._send("/v1/embeddings", {"model": EMBEDS, "input": self._words()})

    async def _dawdle(self) -> None:
        """Some megabytes that nobody reads, one after the other."""
        while await self._pause(DAWDLE):
            body = {"model": self.draw.choice(AWAKE), "prompt": [5] * 8, "max_tokens": 400, "n": 32,
                    "ignore_eos": True, "logprobs": 20, "stream": True}  # fmt: skip
            one = Sent(f"soak-{next(self._ids)}", "/v1/completions", body, leave=0)
            self.sent.append(one)
            await dawdle(self.daemon.url, one)


def processes(daemon: LiveDaemon) -> list[tuple[str, int]]:
    """Role and process id of all that belongs to a daemon; workers of models that never sleep by name."""
    rows = [row for row in daemon.admin.ps() if row.pid]
    found = [
        (row.role if row.role != "worker" else f"worker {row.model if row.model in AWAKE else 'that wakes'}",
         row.pid)
        for row in rows
    ]  # fmt: skip
    zygotes = {leaks.parent(row.pid) for row in rows if row.role == "worker"} - {0, 1, daemon.process.pid}
    return found + [("zygote", pid) for pid in zygotes]
