"""The models a daemon serves: what their folders say, and how they stand now.

An entry whose folder is broken stays in the catalog with the reason, so that clients get a 503 that
explains and the other models serve on.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import structs

from muxd.config import ModelConfig, context
from muxd.device.base import Region
from muxd.engine.lane import Lane
from muxd.engine.values import problem
from muxd.errors import ModelFolderError, MuxdError
from muxd.fleet.loras import changed, read_loras, unread, without
from muxd.fleet.state import Life, State
from muxd.messages import Pooling, dtype_of
from muxd.models.cut import Rank, cut_spec
from muxd.models.families.table import FAMILIES
from muxd.models.generation import read_generation
from muxd.models.lora import with_loras, without_loras
from muxd.models.packing import packing_for
from muxd.models.pooling import read_pooling
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.tensors import wanted
from muxd.models.weights import WeightPlan, plan
from muxd.placement.wakes import Wakes
from muxd.text.library import stamp
from muxd.text.pieces import Kind, Pieces
from muxd.text.pool import TextPool
from muxd.text.token_names import pieces_from
from muxd.text.work import Checked, Source, View

_log = logging.getLogger("muxd.fleet")

Shown = Literal[
    "loading", "ready", "restarting", "draining", "failed", "unloading", "unloaded", "asleep", "waking"
]

# What clients are told, by worker state.
_SHOWN: dict[State, Shown] = {
    State.COLD: "loading",
    State.LOADING: "loading",
    State.READY: "ready",
    State.RESTARTING: "restarting",
    State.FAILED: "failed",
    State.RESTING: "failed",
    State.STOPPED: "draining",
}


class Opened:
    """A readable model folder, for workers on the CPU or on a GPU, and of its ``adapters`` those that can be
    had.

    Raises ModelFolderError, naming the file, when it is not one.
    """

    def __init__(self, config: ModelConfig, *, gpu: bool = False, adapters: Sequence[ModelConfig] = ()):
        folder = Path(config.path).expanduser()
        self.folder = folder
        spec = read_spec(folder)
        dtype = dtype_of(config.dtype)
        self.pooling = _pooling(config, folder, encoder=spec.encoder)
        self.loras = read_loras(adapters, spec, gpu=gpu)
        # What embeds, or is cut, is computed by torch: the native step answers, with all of a model.
        native = FAMILIES[spec.architecture].native and not self.pooling and not spec.headless
        native = native and config.tp == 1
        packing = packing_for(config.weights, config.cpu_step if native else "torch", dtype, gpu=gpu)
        self.rank_spec: ModelSpec = cut_spec(spec, config.tp)
        ranks = [Rank(number, config.tp) for number in range(config.tp)]
        own = (plan(folder, spec, dtype, gpu=gpu, packing=packing, rank=rank) for rank in ranks)
        # Of each rank, alike but for what is in them.
        self.parts: list[WeightPlan] = [
            with_loras(one, self.loras.read, spec, rank) for one, rank in zip(own, ranks, strict=True)
        ]
        self.spec: ModelSpec = structs.replace(spec, tied_embeddings=self.plan.tied)
        self.step: Literal["native", "torch", "gpu"] = (
            "gpu" if gpu else "native" if self.plan.packed else "torch"
        )
        override = str(Path(config.chat_template).expanduser()) if config.chat_template else ""
        self.source = Source(config.name, str(folder), override, stamp(folder))
        self.pieces: Pieces | None = None  # until a text process has read the tokenizer
        self.chat = False  # has a chat template, as far as it has been looked for
        self.thinking = ""  # how its template has answers think
        self.longest = 0  # bytes of its longest token; 0: not known
        generation = read_generation(folder)
        self.eos = self._ends({*self.spec.eos_ids, *generation.eos_ids})
        self.default_sampling = _sampling_of(folder, generation.sampling)

    @property
    def plan(self) -> WeightPlan:
        """Of the first rank."""
        return self.parts[0]

    @property
    def files(self) -> set[Path]:
        """What its weights are read from, and what says how they are computed with."""
        return {file for part in self.parts for file in part.seals}

    def hear(self, checked: Checked) -> None:
        """What a text process has read. Raises ModelFolderError."""
        pieces = pieces_from(checked.names)
        if pieces.kind is Kind.WORDS and not self.spec.headless:
            raise ModelFolderError(
                f"{self.folder / 'tokenizer.json'}: decoder WordPiece is not supported for a model that "
                "generates"
            )
        self.eos |= self._ends(set(checked.eos))
        self.chat, self.longest, self.thinking = checked.chat, checked.longest, checked.thinking
        self.pieces = pieces

    def drop_changed(self) -> dict[int, str]:
        """Adapters whose files are others than those that were read are served no more; which, by number, and
        why. The base is what it was. Reads their headers."""
        found = changed(self.loras, self.plan)
        gone = {self.loras.numbers[name]: why for name, why in found.items()}
        if gone:
            self.parts = [without_loras(part, gone) for part in self.parts]
            self.loras = without(self.loras, found)
        return gone

    def _ends(self, named: set[int]) -> frozenset[int]:
        """What ends an answer by any file. Fine-tunes often say it in one and leave the base's in the others.
        An id that the model has no logit for could never come, and cannot be forbidden."""
        beyond = sorted(token for token in named if not 0 <= token < self.spec.vocab_size)
        if beyond:
            size = self.spec.vocab_size
            _log.warning("%s: end tokens %s are not below vocab_size %d", self.folder, beyond[:8], size)
        return frozenset(named - set(beyond))


class Entry:
    """One ``[[model]]`` as clients and muxctl see it, loaded or not, at one device.

    While a model moves there are two, one at each device; the catalog shows the one that new requests go to.
    ``adapters``: those that belong to it, which come and go with it (``fleet/adapters.py``).
    """

    base = ""  # it has weights of its own

    def __init__(self, config: ModelConfig, adapters: Sequence[ModelConfig] = ()):
        self.config = config
        self.adapters = tuple(adapters)
        self.name = config.name
        self.created = int(time.time())
        self.device = config.device  # where it is or was last; "" before it has been placed
        self.quota = config.quota  # as an operator has left it
        self.pinned = config.resident == "always"  # so, too: the rules never have it sleep
        self.life = Life()
        # What was read stays after an unload: a request that was being checked meanwhile must hear that the
        # model is gone, not that its tokens are wrong.
        self.opened: Opened | None = None
        self.lane: Lane | None = None  # while the scheduler serves it
        self.error = ""  # why it cannot be served
        self.note = ""  # what is under way while it serves
        self.changing: Literal["", "loading", "unloading", "unloaded", "asleep", "waking"] = (
            ""  # wanted instead
        )
        self.shelved: Region | None = None  # its weights in host memory, while it sleeps
        self.wakes = Wakes()  # what they have taken, on its device
        self.files: dict[Path, str] = {}  # those that its weights were read from, by their stamps
        self.woken = 0.0  # when it last came to its device
        self.slept = 0.0  # when it last left it

    def open(self, *, gpu: bool = False) -> None:
        """Read the folder but for its tokenizer; files, so call it in a thread. A broken one becomes
        ``error``.
        ``gpu``: whether its devices are GPUs, which says what "auto" means."""
        try:
            self.opened = Opened(self.config, gpu=gpu, adapters=self.adapters)
            self.error, self.files = "", {}
        except Exception as error:  # whatever is in the folder, the other models go on
            self.error = unread(error, self.name, self.config.path)

    async def read(self, texts: TextPool, *, gpu: bool = False, aside: bool = False) -> None:
        """``open``, and in a text process read the tokenizer, which takes its time, and compile the chat
        template, which comes from strangers. ``aside``: behind everybody there."""
        await asyncio.to_thread(self.open, gpu=gpu)
        if self.opened is None or self.error:
            return
        try:
            self.opened.hear(await texts.check(self.opened.source, self.vocab_size, aside=aside))
        except MuxdError as error:
            self.opened, self.error = None, error.message

    def renew(self, now: float) -> None:
        """Its worker's life is over; the next one begins."""
        self.life = Life()
        self.life.since = now

    def twin(self, device: str) -> "Entry":
        """The same model for another device, nothing of it there yet."""
        twin = Entry(self.config, self.adapters)
        twin.created, twin.quota, twin.opened, twin.device = self.created, self.quota, self.opened, device
        twin.pinned = self.pinned
        twin.shelved, self.shelved, twin.files = self.shelved, None, self.files
        twin.woken, twin.slept = self.woken, self.slept
        twin.changing = self.changing if self.changing == "asleep" else ""
        return twin

    def unshelve(self) -> None:
        """Its weights leave host memory."""
        if self.shelved is not None:
            self.shelved.close()
            self.shelved = None

    @property
    def pieces(self) -> Pieces | None:
        return self.opened.pieces if self.opened else None

    @property
    def chat(self) -> bool:
        return self.opened is not None and self.opened.chat

    @property
    def thinks(self) -> bool:
        return self.chat and self.thinking(self.config) not in ("", "none")

    def thinking(self, config: ModelConfig) -> str:
        """How answers by these settings think; "" where only the folder would say, and has not been read."""
        if config.reasoning != "auto":
            return config.reasoning
        return self.opened.thinking if self.opened is not None else ""

    @property
    def step(self) -> str:
        """What computes it; "" while that is not known."""
        return self.opened.step if self.opened else ""

    @property
    def aliases(self) -> Sequence[str]:
        return self.config.aliases

    @property
    def max_queue(self) -> int:
        return self.config.max_queue

    @property
    def family(self) -> str:
        return self.opened.spec.architecture if self.opened else ""

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in wanted(self.opened.spec)) if self.opened else 0

    @property
    def dtype(self) -> str:
        return self.opened.plan.dtype if self.opened else self.config.dtype

    @property
    def view(self) -> View:
        if self.opened is None:
            return View(Source(self.name, ""), self.max_context, 0)
        config = self.config
        return View(
            self.opened.source,
            self.max_context,
            self.vocab_size,
            self.opened.longest,
            config.tool_parser,
            config.reasoning,
            config.system_prompt,
            config.chat_template_kwargs,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights on a device, on each of those that it is cut over."""
        return self.opened.plan.bytes if self.opened else 0

    @property
    def vocab_size(self) -> int:
        return self.opened.spec.vocab_size if self.opened else 0

    @property
    def eos(self) -> frozenset[int]:
        return self.opened.eos if self.opened else frozenset()

    @property
    def generates(self) -> bool:
        return self.opened is None or not self.opened.spec.headless

    @property
    def pooling(self) -> Pooling:
        return self.opened.pooling if self.opened else ""

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        return self.sampling(self.config)

    def sampling(self, config: ModelConfig) -> Mapping[str, Any]:
        """By the folder, and before that by ``[model.sampling]`` of ``config``."""
        given = {key: value for key, value in structs.asdict(config.sampling).items() if value is not None}
        return {**(self.opened.default_sampling if self.opened else {}), **given}

    @property
    def own_context(self) -> int:
        """Tokens of prompt and answer that model and configuration allow, whatever the pool does."""
        if self.opened is None:
            return self.config.max_context
        return context(self.config, self.opened.spec.max_positions)

    @property
    def max_context(self) -> int:
        """The same as the pool allows it now: quotas and other models move it."""
        return self.lane.spec.max_context if self.lane else self.own_context

    @property
    def state(self) -> Shown:
        if self.changing:
            return self.changing
        return "failed" if self.error else _SHOWN[self.life.state]

    @property
    def retry_after(self) -> float | None:
        """Of a failed model: seconds in which it will be tried again at the latest; None: not by itself."""
        return None if self.error else self.life.retry_after

    @property
    def detail(self) -> str:
        if self.changing == "unloaded":
            return f"muxctl load {self.name} brings it back"
        if self.changing == "asleep" and not self.error:
            parked = self.shelved is not None
            seconds = self.wakes.parked if parked else self.wakes.cold
            lies = "in host memory" if parked else "on disk"
            return f"{lies}; wakes in {seconds:.2g} s" if seconds else lies
        return self.error or self.note or self.life.detail


def _pooling(config: ModelConfig, folder: Path, *, encoder: bool) -> Pooling:
    """As configured, else what the folder says; an encoder that says nothing gives the mean."""
    if config.pooling != "auto":
        return "" if config.pooling == "none" else config.pooling
    return read_pooling(folder) or ("mean" if encoder else "")


def _sampling_of(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json says for requests that say nothing. A value that no request may have is
    left out with a warning: the model is as good as without it, and other programs would serve it."""
    wrong = {key: why for key, value in given.items() if (why := problem(key, value))}
    for key, why in wrong.items():
        _log.warning(
            "%s: %s %.40r %s; it is ignored", folder / "generation_config.json", key, given[key], why
        )
    return {key: value for key, value in given.items() if key not in wrong}
