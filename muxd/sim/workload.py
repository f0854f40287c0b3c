"""A workload file: who asks which model when, and how long prompt and answer are.

JSONL. The first line may be a header ``{"workload": {...}}`` that says how the file was made; every other
line is one request, in order of time. The simulator and ``muxctl bench`` read the same files; trace files
from elsewhere need no header. Prompts have no words: only lengths matter here.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from muxd.errors import ConfigError

_SMALLEST_ID = 3  # below are the usual unknown, begin and end tokens
_ID_SPAN = 200  # ids that any vocabulary has
_LARGEST_SCALE = 1000.0


class Item(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One request. ``time``: seconds after the start; ``key``: whose it is, by name, for the simulator alone.
    Holds no containers, so the collector need not look."""

    time: float
    model: str
    prompt_tokens: int
    output_tokens: int
    key: str = ""


class Workload(Struct, frozen=True):
    """Requests in order of time, and the header's words about them."""

    items: list[Item]
    header: dict[str, Any]

    @property
    def models(self) -> list[str]:
        """Every model with a request, most requests first."""
        return [name for name, _ in Counter(item.model for item in self.items).most_common()]

    @property
    def duration(self) -> float:
        """Seconds over which requests arrive: the header's word, else the last arrival."""
        last = self.items[-1].time if self.items else 0.0
        return max(float(self.header.get("duration", 0.0)), last)

    def of(self, models: Collection[str]) -> tuple[list[int], "Workload"]:
        """What these models are asked, in the same time, and its places here."""
        places = [place for place, item in enumerate(self.items) if item.model in models]
        return places, Workload([self.items[place] for place in places], {"duration": self.duration})


class _Header(Struct, forbid_unknown_fields=True):
    workload: dict[str, Any]


def read(path: Path) -> Workload:
    """Raises ConfigError naming file, line and field."""
    try:
        with path.open("rb") as lines:
            return _parse(path, lines)
    except OSError as error:
        raise ConfigError(f"cannot read the workload {path}: {error.strerror}") from None


def _parse(path: Path, lines: Iterable[bytes]) -> Workload:
    decode = msgspec.json.Decoder(Item).decode
    header: dict[str, Any] = {}
    items: list[Item] = []
    before = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if number == 1 and line.lstrip().startswith(b'{"workload"'):
                header = msgspec.json.decode(line, type=_Header).workload
                continue
            item = decode(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        _check(item, before, f"{path}, line {number}")
        before = item.time
        items.append(item)
    if not items:
        raise ConfigError(f"{path} holds no requests")
    return Workload(items, header)


def _check(item: Item, before: float, where: str) -> None:
    if not before <= item.time < float("inf"):
        raise ConfigError(f"{where}: time: {item.time} is not a time at or after {before}: sort the file")
    if item.prompt_tokens < 1 or item.output_tokens < 1:
        raise ConfigError(f"{where}: prompt_tokens and output_tokens must be at least 1")
    if not item.model:
        raise ConfigError(f"{where}: model: must not be empty")


def write(path: Path, workload: Workload) -> None:
    """The header first, then one request a line. Raises ConfigError naming the file."""
    encode = msgspec.json.encode
    try:
        with path.open("wb") as file:
            file.write(encode({"workload": workload.header}) + b"\n")
            for item in workload.items:
                file.write(encode(item) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write the workload {path}: {error.strerror}") from None


def rescaled(workload: Workload, *, time: float = 1.0, length: float = 1.0) -> Workload:
    """Times and lengths multiplied: ``time`` 0.5 is the same requests at twice the rate."""
    check_scales(time, length)

    def tokens(count: int) -> int:
        return max(1, round(count * length))

    items = [
        Item(item.time * time, item.model, tokens(item.prompt_tokens), tokens(item.output_tokens), item.key)
        for item in workload.items
    ]
    scaled = {"scaled": {"time": time, "length": length}, "duration": workload.duration * time}
    return Workload(items, {**workload.header, **scaled})


def check_scales(time: float, length: float) -> None:
    for name, factor in (("time", time), ("length", length)):
        if not 0 < factor <= _LARGEST_SCALE:
            raise ConfigError(f"--{name}-scale {factor:g}: must be above 0 and at most {_LARGEST_SCALE:g}")


def prompts(workload: Workload, *, shared_prefix: int = 0, first: int = 0) -> Iterator[list[int]]:
    """Token ids for each request in turn, the same in the simulator and on the wire. ``first``: number of the
    first request; others than before have other prompts.

    Prompts differ in their first four tokens, so that no cached prefix is found by accident, except that the
    first ``shared_prefix`` tokens are the same in all prompts of a model. Ids lie in [3, 203).
    """
    draw = np.random.default_rng(20240601)
    longest = max((item.prompt_tokens for item in workload.items), default=0)
    filler = draw.integers(_SMALLEST_ID, _SMALLEST_ID + _ID_SPAN, longest + _ID_SPAN).tolist()
    for number, item in enumerate(workload.items, first):
        shift = number % _ID_SPAN
        own = [*_digits(number), *filler[shift : shift + item.prompt_tokens]]
        common = filler[: min(shared_prefix, item.prompt_tokens)]
        yield (common + own)[: item.prompt_tokens]


def _digits(number: int) -> list[int]:
    """Four token ids that are different for every number below 200⁴."""
    return [_SMALLEST_ID + number // _ID_SPAN**place % _ID_SPAN for place in range(4)]
