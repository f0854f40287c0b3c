"""Replays a workload against a live daemon over HTTP, as many independent clients: the load generator.

Streaming completions with token ids as prompts, ``ignore_eos`` and exactly the asked number of tokens. It
shares the machine with the server, so bodies are encoded before the start and an answer is not parsed: the
first bytes are the first token (the daemon writes nothing before it), the last frame tells the usage.
Knows the daemon by its URL only.
"""

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence

import aiohttp
import msgspec
import numpy as np

from muxd.errors import ConfigError, DaemonUnreachable
from muxd.sim.records import Outcome, Records
from muxd.sim.workload import Item, Workload, prompts

_encode = msgspec.json.Encoder().encode
_TAIL = 4096  # bytes of an answer that are kept: the usage is in its last frame
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
_LEAD = 0.2  # seconds between the last preparation and the workload's time 0

Progress = Callable[[int], None]


class Replay:
    """One run. ``lateness``: seconds between when a request was due and when it was sent, per request.

    ``run`` raises DaemonUnreachable, or ConfigError when the daemon does not serve a model of the workload.
    """

    def __init__(
        self,
        workload: Workload,
        url: str | Mapping[str, str],
        *,
        shared_prefix: int = 0,
        first: int = 0,
        greedy: bool = True,
        progress: Progress,
    ):
        """``url``: where all models are served, or each model's, by its name. ``shared_prefix``, ``first``:
        as of ``workload.prompts``. ``greedy``: at temperature 0, all else as the model is configured;
        otherwise that, too."""
        self.records = Records(workload)
        self.lateness = np.zeros(len(workload.items))
        found = {model: url if isinstance(url, str) else url[model] for model in workload.models}
        self._urls = {model: one.rstrip("/") for model, one in found.items()}
        self._progress = progress
        ids = prompts(workload, shared_prefix=shared_prefix, first=first)
        self._bodies = [
            _body(item, prompt, greedy=greedy) for item, prompt in zip(workload.items, ids, strict=True)
        ]
        self._start = 0.0

    async def run(self) -> Records:
        """Until every request has ended."""
        loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(), headers={"Content-Type": "application/json"}
        ) as session:
            for url in set(self._urls.values()):
                await self._check(session, url)
            self._start = loop.time() + _LEAD
            async with asyncio.TaskGroup() as clients:
                for index, item in enumerate(self.records.workload.items):
                    wait = self._start + item.time - loop.time()
                    if wait > 0:
                        await asyncio.sleep(wait)
                    clients.create_task(self._request(session, index, item))
        return self.records

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._start

    async def _check(self, session: aiohttp.ClientSession, url: str) -> None:
        try:
            async with session.get(f"{url}/v1/models") as answer:
                answer.raise_for_status()
                served = {model["id"] for model in (await answer.json())["data"]}
        except (aiohttp.ClientError, OSError) as error:
            raise DaemonUnreachable(f"no muxd answers at {url}: {error}") from None
        missing = [model for model, at in self._urls.items() if at == url and model not in served]
        if missing:
            raise ConfigError(f"{url} does not serve {', '.join(missing)}, only {', '.join(sorted(served))}")

    async def _request(self, session: aiohttp.ClientSession, index: int, item: Item) -> None:
        sent = self._now()
        self.records.sent[index] = sent
        self.lateness[index] = sent - item.time
        try:
            async with session.post(
                f"{self._urls[item.model]}/v1/completions", data=self._bodies[index]
            ) as answer:
                if answer.status == 200:
                    await self._stream(answer, index, item)
                else:
                    self._refused(index, answer.status, await answer.read())
        except (aiohttp.ClientError, OSError) as error:
            self.records.fail(index, Outcome.FAILED, self._now(), f"connection: {type(error).__name__}")
        self._progress(1)

    async def _stream(self, answer: aiohttp.ClientResponse, index: int, item: Item) -> None:
        tail = b""
        async for piece in answer.content.iter_any():
            if math.isnan(self.records.first[index]):
                self.records.first[index] = self._now()
            tail = (tail + piece)[-_TAIL:]
        found = _USAGE.findall(tail)
        count = int(found[-1]) if found else None
        if count == item.output_tokens:
            self.records.finish(index, Outcome.SERVED, self._now())
        else:
            why = f"the stream broke off: {_message(tail)}" if count is None else f"{count} tokens came"
            self.records.fail(index, Outcome.FAILED, self._now(), why)

    def _refused(self, index: int, status: int, body: bytes) -> None:
        outcome = Outcome.REFUSED if status in (400, 413, 429, 503) else Outcome.FAILED
        self.records.fail(index, outcome, self._now(), f"HTTP {status}: {_message(body)}")


def _body(item: Item, prompt: Sequence[int], *, greedy: bool) -> bytes:
    return _encode(
        {
            **({"temperature": 0} if greedy else {}),
            "model": item.model, "prompt": prompt, "max_tokens": item.output_tokens, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
            "return_token_ids": True,  # so that a token without text of its own is a frame, too
        }
    )  # fmt: skip


def _message(body: bytes) -> str:
    """The server's sentence, numbers taken out so that alike refusals count as one kind."""
    found = re.search(rb'"message": ?"((?:[^"\\]|\\.)*)"', body)
    return re.sub(r"\d+", "#", found[1].decode(errors="replace")) if found else "no reason was given"
