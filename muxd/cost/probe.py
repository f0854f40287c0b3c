"""What `muxd profile` and the process that measures say to each other: JSON lines over stdin and stdout.

``muxd.worker.profile`` answers, ``muxd.cli.profiling`` asks.
"""

import msgspec
from msgspec import Struct

from muxd.messages import Dtype, KvDtype, StepName, WeightsName


class Setup(Struct, frozen=True, tag="setup"):
    """First line: which model, in how much memory of its own."""

    folder: str
    dtype: Dtype
    block_bytes: int
    pool_bytes: int
    cores: int
    device: str = "cpu"
    random: bool = False  # weights are random numbers: of the folder, only config.json is read
    kv_dtype: KvDtype = "auto"
    weights: WeightsName = "file"
    step: StepName = "auto"  # on a CPU


class Decode(Struct, frozen=True, tag="decode"):
    """Time decode steps of ``batch`` sequences that begin with ``context`` tokens each.

    At least ``least`` steps, and more until ``seconds`` have passed.
    """

    batch: int
    context: int
    share: int
    least: int = 5
    seconds: float = 0.0
    parts: int = 0  # as in ``messages.Prefill``


class Prefill(Struct, frozen=True, tag="prefill"):
    """Time prefill batches: ``tokens`` tokens cut evenly into ``chunks`` prompts, ``context`` before each."""

    tokens: int
    context: int
    share: int
    chunks: int = 1
    least: int = 3
    seconds: float = 0.0
    parts: int = 0


class Opened(Struct, frozen=True):
    """Answer to ``Setup``: what was read, and with what it is computed."""

    layers: int
    kv_heads: int
    head_dim: int
    max_positions: int
    row_tokens: int
    rows: int  # the pool's
    torch: str
    packed: int = 0  # bytes of all weights where the native step computes; 0: torch does


class Measured(Struct, frozen=True):
    """Answer to a probe: seconds of each batch, in the order of time, the first left out."""

    seconds: list[float]


Probe = Decode | Prefill

encode = msgspec.json.Encoder().encode
decode_setup = msgspec.json.Decoder(Setup).decode
decode_probe = msgspec.json.Decoder(Probe).decode
