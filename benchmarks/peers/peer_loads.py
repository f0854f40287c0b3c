"""What the servers of the comparison are asked, and what is read off: the same workloads for all."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import uvloop
from msgspec import Struct

from muxd.sim.generate import mixed
from muxd.sim.records import Outcome, Records
from muxd.sim.replay import Replay
from muxd.sim.traffic import ModelTraffic
from muxd.sim.workload import Item, Workload

FIRST, TOKEN = 1.0, 0.05  # seconds to the first token and between tokens within which a reader is content
PROMPT = 106
_DRAWS = 50


@dataclass(frozen=True)
class Load:
    """``workload`` is asked ``times`` times, one after the other. ``beside``: is asked meanwhile, and is not
    what the figures are of. ``short``: asked of every form of weights."""

    workload: Workload
    times: int = 1
    shared_prefix: int = 0
    beside: tuple[Item, ...] = ()
    short: bool = False

    @property
    def pair(self) -> bool:
        """Both models are asked."""
        return len(self.workload.models) > 1 or bool(self.beside)


class Figures(Struct):
    """Of one load at one server. Milliseconds; tokens a second of all answers, from the first request to the
    last token; ``content``: the part within ``FIRST`` and ``TOKEN``."""

    tokens: float
    first_p50: float
    first_p99: float
    token_p50: float
    token_p99: float
    content: float
    failed: int = 0


def at_once(model: str, streams: int, tokens: int, prompt: int = PROMPT) -> Workload:
    return Workload([Item(0.0, model, prompt, tokens)] * streams, {})


def mix(smol: float, gemma: float, rate: float, seconds: float) -> Workload:
    """Arrivals in bursts (a variation of 2); about 80 tokens in and 55 out. Of some draws that whose number
    of requests is nearest to the rate: in so short a time bursts make half of it."""
    shares = {"smol": smol, "gemma": gemma}
    models = [ModelTraffic(name, rate * part, "lognormal:80,55", 2.0) for name, part in shares.items()]
    drawn = [mixed(models, seconds, seed=seed) for seed in range(_DRAWS)]
    return min(drawn, key=lambda one: abs(len(one.items) - rate * seconds))


def loads(seconds: float) -> dict[str, Load]:
    """``seconds``: of arrivals where requests come one by one."""
    prefix = Workload([Item(i / 4, "smol", 627, 32) for i in range(int(2 * seconds))], {})
    flood = tuple([Item(0.0, "gemma", PROMPT, 200)] * 16)
    return {
        "1 stream, smol": Load(at_once("smol", 1, 96), 4, short=True),
        "8 streams, smol": Load(at_once("smol", 8, 96), 3, short=True),
        "32 streams, smol": Load(at_once("smol", 32, 64), 2, short=True),
        "1 stream, gemma": Load(at_once("gemma", 1, 96), 3, short=True),
        "8 streams, gemma": Load(at_once("gemma", 8, 64), 2, short=True),
        "one prompt of 1,836 tokens": Load(at_once("smol", 1, 8, 1836), 3, short=True),
        "600 tokens of 627 alike, 4 a second": Load(prefix, shared_prefix=600),
        "two models 9:1, 6 a second": Load(mix(0.9, 0.1, 6.0, seconds)),
        "two models 9:1, 12 a second": Load(mix(0.9, 0.1, 12.0, seconds)),
        "two models 5:5, 4 a second": Load(mix(0.5, 0.5, 4.0, seconds)),
        "1 stream, smol, beside 16 of gemma": Load(at_once("smol", 1, 192), beside=flood),
    }


class Client:
    """Asks one set of servers. No prompt comes twice: what is cached of it would be another load."""

    def __init__(self, urls: Mapping[str, str]):
        self.urls = urls
        self._asked = 0

    def warm(self) -> None:
        """New servers are slow at first: pages and kernels that they have not touched."""
        for _ in range(2):
            self._replay(Workload([Item(0.0, model, 64, 32) for model in self.urls for _ in range(8)], {}))

    def first_tokens(self) -> None:
        """One token of every model."""
        self._replay(Workload([Item(0.0, model, 16, 1) for model in self.urls], {}))

    def measure(self, load: Load) -> Figures:
        """Medians over the times that it is asked."""
        asked = Workload(sorted([*load.workload.items, *load.beside], key=lambda item: item.time), {})
        ours = {item.model for item in load.workload.items}
        found = [figures(self._replay(asked, load.shared_prefix), ours) for _ in range(load.times)]
        names = [name for name in Figures.__struct_fields__ if name != "failed"]
        middle = {name: float(np.median([getattr(one, name) for one in found])) for name in names}
        return Figures(**middle, failed=sum(one.failed for one in found))

    def _replay(self, workload: Workload, shared_prefix: int = 0) -> Records:
        run = Replay(
            workload, self.urls, shared_prefix=shared_prefix, first=self._asked, progress=lambda done: None
        )
        self._asked += len(workload.items)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run.run())


def figures(records: Records, models: set[str]) -> Figures:
    """Of those requests that were for ``models``."""
    items = records.workload.items
    ours = np.array([item.model in models for item in items])
    served = ours & (records.outcome == Outcome.SERVED)
    tokens = np.array([item.output_tokens for item in items])
    first = 1e3 * (records.first - records.sent)
    each = 1e3 * (records.end - records.first) / np.maximum(tokens - 1, 1)
    content = served & (first <= 1e3 * FIRST) & (each <= 1e3 * TOKEN)
    if not served.any():
        nan = float("nan")
        return Figures(0.0, nan, nan, nan, nan, 0.0, int(ours.sum()))
    lasted = records.end[served].max() - records.sent[served].min()
    return Figures(
        tokens=float(tokens[served].sum() / lasted),
        first_p50=float(np.quantile(first[served], 0.5)),
        first_p99=float(np.quantile(first[served], 0.99)),
        token_p50=float(np.quantile(each[served], 0.5)),
        token_p99=float(np.quantile(each[served], 0.99)),
        content=float(content.sum() / ours.sum()),
        failed=int(ours.sum() - served.sum()),
    )
