"""The models a daemon serves: what their folders say, and how they stand now.

An entry whose folder is broken stays in the catalog with the reason, so that clients get a 503 that
explains and the other models serve on.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from muxd.config import ModelConfig
from muxd.engine.lane import Lane
from muxd.engine.values import first_outside, problem
from muxd.errors import ModelFolderError, MuxdError
from muxd.fleet.state import Life, State
from muxd.messages import kv_item_bytes
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.weights import WeightPlan, plan
from muxd.text.template import ChatTemplate
from muxd.text.tokenizer import Tokenizer

_log = logging.getLogger("muxd.fleet")

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

Shown = Literal["loading", "ready", "restarting", "draining", "failed", "unloading", "unloaded"]

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
    """A readable model folder. Raises ModelFolderError, naming the file, when it is not one."""

    def __init__(self, config: ModelConfig):
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            raise ModelFolderError(f"model.path of {config.name}: {folder} is not a folder")
        self.folder = folder
        self.spec: ModelSpec = read_spec(folder)
        self.plan: WeightPlan = plan(folder, self.spec, config.dtype)
        self.tokenizer = Tokenizer.load(folder)
        self.template = self._template(config)
        self.eos = _known(frozenset(self.spec.eos_ids) | self.tokenizer.eos, self.spec, folder)
        self.default_sampling = _default_sampling(folder)

    def _template(self, config: ModelConfig) -> ChatTemplate | None:
        file = Path(config.chat_template).expanduser() if config.chat_template else None
        return ChatTemplate.load(self.folder, self.tokenizer.specials, file)


class Entry:
    """One ``[[model]]`` as clients and muxctl see it, loaded or not, at one device.

    While a model moves there are two, one at each device; the catalog shows the one that new requests go to.
    """

    def __init__(self, config: ModelConfig):
        self.config = config
        self.name = config.name
        self.created = int(time.time())
        self.device = config.device  # where it is or was last; "" before it has been placed
        self.quota = config.quota  # as an operator has left it
        self.life = Life()
        # What was read stays after an unload: a request that was being checked meanwhile must hear that the
        # model is gone, not that its tokens are wrong.
        self.opened: Opened | None = None
        self.lane: Lane | None = None  # while the scheduler serves it
        self.error = ""  # why it cannot be served
        self.note = ""  # what is under way while it serves
        self.changing: Literal["", "loading", "unloading", "unloaded"] = ""  # what an operator wants instead

    def open(self) -> None:
        """Read the folder; slow (tokenizers), so call it in a thread. A broken folder becomes ``error``."""
        try:
            self.opened = Opened(self.config)
            self.error = ""
        except MuxdError as error:
            self.error = error.message

    def renew(self, now: float) -> None:
        """Its worker's life is over; the next one begins."""
        self.life = Life()
        self.life.since = now

    def twin(self, device: str) -> "Entry":
        """The same model for another device, nothing of it there yet."""
        twin = Entry(self.config)
        twin.created, twin.quota, twin.opened, twin.device = self.created, self.quota, self.opened, device
        return twin

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.opened.tokenizer if self.opened else None

    @property
    def template(self) -> ChatTemplate | None:
        return self.opened.template if self.opened else None

    @property
    def vocab_size(self) -> int:
        return self.opened.spec.vocab_size if self.opened else 0

    @property
    def eos(self) -> frozenset[int]:
        return self.opened.eos if self.opened else frozenset()

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        return self.opened.default_sampling if self.opened else {}

    def row_tokens(self, block_bytes: int) -> int:
        """T of docs/design.md §1 for an opened entry. Raises ModelFolderError if no token fits a block."""
        assert self.opened is not None
        item = kv_item_bytes(self.config.dtype, self.config.kv_dtype)
        tokens = self.opened.spec.tokens_per_row(block_bytes, item)
        if tokens < 1:
            raise ModelFolderError(
                f"{self.name}: K and V of one token in one head are larger than pool.block_bytes = "
                f"{block_bytes}; raise it"
            )
        return tokens

    @property
    def own_context(self) -> int:
        """Tokens of prompt and answer that model and configuration allow, whatever the pool does."""
        if self.opened is None:
            return self.config.max_context
        most = self.opened.spec.max_positions
        return min(self.config.max_context or most, most)

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
        return self.error or self.note or self.life.detail


def _known(eos: frozenset[int], spec: ModelSpec, folder: Path) -> frozenset[int]:
    """Without ids that no row of the vocabulary has: they never come, and a worker could not ban them."""
    unknown = [token for token in sorted(eos) if first_outside([token], spec.vocab_size) is not None]
    if unknown:
        _log.warning(
            "%s: eos_token_id %s lies outside the vocabulary of %d tokens and is left out",
            folder, ", ".join(map(str, unknown)), spec.vocab_size,
        )  # fmt: skip
    return eos - frozenset(unknown)


def _default_sampling(folder: Path) -> dict[str, Any]:
    """What generation_config.json says for requests that say nothing. A value that no request may have is
    left out with a warning: the model is as good as without it, and other programs would serve it.

    Raises ModelFolderError when the file is not JSON.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return {}
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{file}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelFolderError(f"{file}: is not a JSON object")
    given = {key: values[key] for key in _SAMPLING_KEYS if values.get(key) is not None}
    wrong = {key: why for key, value in given.items() if (why := problem(key, value))}
    for key, why in wrong.items():
        _log.warning("%s: %s %.40r %s; it is ignored", file, key, given[key], why)
    return {key: value for key, value in given.items() if key not in wrong}
