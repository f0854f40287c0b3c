"""What `muxd profile`, `muxctl quality` and the processes that measure say to each other: JSON lines over
stdin and stdout.

``muxd.cli.profiling`` asks ``muxd.worker.profile``, ``muxd.cli.quality`` asks ``muxd.worker.quality``.
"""

import msgspec
from msgspec import Struct

from muxd.messages import Dtype, KvDtype, Sampling, StepName, WeightsName


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
    rank: int = 0  # of ``ranks`` processes that get the same probes, over the files' weights; as in
    ranks: int = 1  # ``messages.Setup``
    meeting: str = ""
    sampling: Sampling = Sampling(temperature=0.0)  # how each token is chosen


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

    max_positions: int
    row_tokens: int
    rows: int  # the pool's
    torch: str
    packed: int = 0  # bytes of all weights where the native step computes; 0: torch does
    state_rows: int = 0  # of them each sequence holds beside those of its tokens


class Measured(Struct, frozen=True):
    """Answer to a probe: seconds of each batch, in the order of time, the first left out."""

    seconds: list[float]


class Compare(Struct, frozen=True):
    """Asks what each format of a model's weights costs in quality. ``text``: "" for muxd's own."""

    folder: str
    cores: int
    text: str = ""


class Counted(Struct, frozen=True, tag="counted"):
    """``tokens`` more of ``of`` have been read; none when all models are open."""

    tokens: int
    of: int


class Compared(Struct, frozen=True, tag="compared"):
    """One format beside float32, which comes first. ``divergence``: Kullback-Leibler, of float32's
    distributions from this one's, nats a token on the mean; ``worst``: what a token in a hundred exceeds;
    ``same``: the part of the tokens at which both have the same most probable one."""

    weights: str  # as ``weights`` of a model; "float32": the reference
    forms: list[str]  # of its matrices, most numbers first
    nbytes: int
    tokens: int
    perplexity: float
    divergence: float
    worst: float
    same: float


Probe = Decode | Prefill

encode = msgspec.json.Encoder().encode
decode_setup = msgspec.json.Decoder(Setup).decode
decode_compare = msgspec.json.Decoder(Compare).decode
decode_compared = msgspec.json.Decoder(Counted | Compared).decode
decode_probe = msgspec.json.Decoder(Probe).decode
