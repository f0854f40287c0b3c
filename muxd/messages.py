"""Everything that crosses between daemon and worker, as msgspec tagged structs.

Arrays travel as little-endian ``int32`` bytes so that a row table costs 4 bytes per head block and no
Python object each. Commands carry a batch number; the reply carries it back, so a late reply can never be
taken for the next one.
"""

from typing import ClassVar, Literal

import msgspec
from msgspec import Struct

Phases = Literal["both", "prefill", "decode"]
Dtype = Literal["bfloat16", "float16", "float32"]
NO_TOKEN = -1  # in the place of a token: the logits had no finite maximum, so there was none to pick
SAMPLED = 32  # sequences whose tokens a GPU picks at once, where that takes much memory for each
_TINY = 2.0**-126  # the least float32 that is normal
# What people write for it; "auto" is what the model folder holds.
DtypeName = Literal["auto", "bfloat16", "float16", "float32", "bf16", "fp16", "half", "fp32", "float"]
_NAMED: dict[DtypeName, Dtype] = {
    "bf16": "bfloat16", "bfloat16": "bfloat16",
    "fp16": "float16", "half": "float16", "float16": "float16",
    "fp32": "float32", "float": "float32", "float32": "float32",
}  # fmt: skip
Pooling = Literal["", "last", "mean", "cls"]  # how hidden states become one vector: "" not at all
PoolingName = Literal["auto", "none", "last", "mean", "cls"]  # what people write for it
ITEM_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
# How matrices lie in memory: as the files have them, made smaller at the load, or as floats.
WeightsName = Literal["file", "int8", "int4", "bfloat16", "float16", "float32"]
StepName = Literal["auto", "native", "torch"]  # what computes on a CPU
KvDtype = Literal["auto", "fp8"]  # of K and V in the pool: the model's own, or float8_e4m3fn


def dtype_of(name: DtypeName) -> Dtype | None:
    """None for "auto"."""
    return _NAMED.get(name)


def kv_item_bytes(dtype: Dtype, kv_dtype: KvDtype) -> int:
    """Bytes of one number of K or V in the pool, of a model of type ``dtype``."""
    return 1 if kv_dtype == "fp8" else ITEM_BYTES[dtype]


class TensorEntry(Struct, frozen=True, array_like=True):
    """One tensor inside the weights region: ``offset`` bytes from its start, row-major.

    With a ``form`` it is a matrix packed for the native step, in the format of that name
    (``kernels.native.FORMATS``); ``dtype`` is then what is computed in.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset: int
    form: str = ""


class LoraPart(Struct, frozen=True, array_like=True):
    """What an adapter adds to one part of a matrix: ``scale`` · (x aᵀ) bᵀ, to the outputs from ``first`` on.

    ``a`` [r, inputs] and ``b`` [outputs, r] lie in the weights region, float32.
    """

    adapter: int  # 1, 2 ...
    matrix: str  # as the model's pages call it
    part: int  # which of its parts
    first: int
    scale: float
    a: TensorEntry
    b: TensorEntry


class Setup(Struct, frozen=True, tag="setup"):
    """First message on the inherited socketpair, with the descriptors of ``DESCRIPTORS``."""

    # The last is the reading end of a pipe that hangs up when the daemon is gone.
    DESCRIPTORS: ClassVar = ("pool", "weights", "lifeline")

    worker: str  # identity on the link, unique per spawn: "<model>/<phases>/<generation>"
    model: str
    folder: str
    dtype: Dtype  # of weights, and of K and V unless ``kv_dtype`` says otherwise
    link: str  # ZeroMQ endpoint of the daemon
    device: str  # "cpu" or "cuda:0"
    pool_bytes: int
    block_bytes: int
    max_rows: int  # row ids lie in [0, max_rows)
    weights_bytes: int
    tensors: list[TensorEntry]
    cores: int  # a share of 100 % means this many threads
    max_context: int
    cpus: tuple[int, ...] = ()  # the CPUs to stay on; none: all
    phases: Phases = "both"  # what this worker computes
    pool_reach: int = 0  # bytes of addresses to reserve for the pool, where it can grow; at least pool_bytes
    kv_dtype: KvDtype = "auto"  # how K and V lie in the rows: the same for all workers of a model
    max_running: int = 0  # sequences that are decoded together at most; 0: nobody said
    # Bytes that torch may take on a GPU beside pool and weights, by the worker's phases; none: no limit.
    scratch: dict[Phases, int] = {}
    lora: list[LoraPart] = []  # of the adapters that a sequence may ask for, by number
    rank: int = 0  # of ``ranks`` processes that compute each of its batches together, tensor parallel
    ranks: int = 1
    meeting: str = ""  # the file by which they find each other; not there before, and theirs alone
    # Others stream: what comes before ``Ready`` gives way to them. Never on a GPU, whose context is the main
    # thread's.
    aside: bool = False


ConstraintKind = Literal["json_object", "json_schema", "regex", "choice", "grammar"]


class Constraint(Struct, frozen=True, array_like=True):
    """What the text of an answer must be: ``text`` is a JSON schema, a pattern, a JSON list of choices, or a
    grammar (Lark or GBNF). The answer ends with one of ``ends``, where that text is complete and only there.
    """

    kind: ConstraintKind
    text: str = ""
    ends: tuple[int, ...] = ()


class Sampling(Struct, frozen=True, array_like=True):
    """How to pick the next token. ``temperature`` 0 is greedy and exact. The filters leave the best token at
    least.

    A token at position p of a sequence is drawn from a counter-based generator keyed by ``(seed, p)``, so a
    sequence that is preempted and recomputed, or batched differently, draws the same numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0  # while fewer are generated, ``banned_first`` cannot be sampled
    banned_first: tuple[int, ...] = ()
    logprobs: int = -1  # -1: none; k >= 0: the chosen token's and the k best
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits of these tokens, before anything else
    allowed: tuple[int, ...] = ()  # only these tokens; none: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # what no answer may contain, in tokens
    constraint: Constraint | None = None
    prompt_logprobs: int = -1  # as ``logprobs``, of the prompt's own tokens

    @property
    def bounded(self) -> bool:
        """Tokens are ruled out or preferred, beyond ``banned_first``."""
        return bool(self.bias or self.allowed or self.bad_words or self.constraint)

    @property
    def reads_back(self) -> bool:
        """Which tokens may come depends on the last one: a step is asked for when that is known."""
        return self.constraint is not None or any(len(word) > 1 for word in self.bad_words)

    @property
    def greedy(self) -> bool:
        """The best token is wanted: also with a temperature too small for float32, whose limit that is."""
        return not self.temperature >= _TINY


class NewRows(Struct, frozen=True, array_like=True):
    """Rows the worker has not seen yet; appended to its table, never rebuilt."""

    ids: bytes = b""  # int32[n]
    blocks: bytes = b""  # int32[n, blocks of a row], head-block ids, layer-major


class Chunk(Struct, frozen=True, array_like=True):
    """One sequence's part of a prefill batch: tokens at positions [start, start + len(tokens)).

    A sequence's first chunk starts after the rows it shares with others (a multiple of a row's tokens; 0
    without any): they are the first of ``rows``, a worker of this model has filled them, and they are not
    written again.
    """

    seq: int
    start: int
    tokens: bytes  # int32[n]
    rows: bytes  # int32[k]: row ids appended to this sequence's block table
    last: bool  # sample one token after this chunk
    sampling: Sampling
    prompt_tokens: int  # tokens at and after this position were generated (recomputed after preemption)
    first: bool = False  # the sequence begins (again) with this chunk; a chunk at 0 always begins one
    known: bytes = b""  # int32[start], on the first chunk: the tokens before it, for penalties
    pooling: Pooling = ""  # with ``last`` a vector is made instead of a token
    adapter: int = 0  # on the first chunk: of the set-up's, whose; 0: none
    state: bytes = b""  # int32[k], on the first chunk: rows of its state, where the model keeps one
    origin: bytes = b""  # int32[k], on a first chunk that starts behind tokens: rows of a copy of their state
    copy: bytes = b""  # int32[k]: rows into which its state is copied as it is after ``mark`` tokens,
    mark: int = 0  # which is in (start, start + len(tokens)]


class Prefill(Struct, frozen=True, tag="prefill"):
    """Run one prefill batch with ``share`` percent of the device."""

    batch: int
    share: int
    rows: NewRows
    chunks: list[Chunk]
    forget: list[int]  # sequences whose worker-side state can go
    parts: int = 0  # mask of the parts of a GPU's SMs to run on (``device.green``); 0: none are booked


class Joined(Struct, frozen=True, array_like=True):
    """A sequence that another worker of the model has prefilled, in rows of the same pool.

    K and V of all its tokens but the last lie in ``rows``; the last is the next to be fed.
    """

    seq: int
    tokens: bytes  # int32[n]
    rows: bytes  # int32[k], row ids: its block table
    sampling: Sampling
    prompt_tokens: int  # tokens at and after this position were generated
    adapter: int = 0  # as in ``Chunk``
    state: bytes = b""  # as in ``Chunk``: it is as the sequence's tokens but the last have left it


class Decode(Struct, frozen=True, tag="decode"):
    """Run one decode step: one token for each of ``seqs``."""

    batch: int
    share: int
    rows: NewRows
    seqs: list[int]
    grown: list[tuple[int, int]]  # (seq, row id appended to its block table)
    forget: list[int]
    parts: int = 0  # as in ``Prefill``
    joined: list[
        Joined
    ] = []  # those of ``seqs`` that this worker steps for the first time, if it only decodes


class MapPool(Struct, frozen=True, tag="map"):
    """The pool has memory at ``offset`` of its addresses from now on. The same struct comes with the
    descriptor over the inherited socketpair, before any command that uses it."""

    offset: int
    nbytes: int


class UnmapPool(Struct, frozen=True, tag="unmap"):
    """Give back what ``MapPool`` put at ``offset``: no row lies there any more. Answered by ``Unmapped``."""

    offset: int


class Shutdown(Struct, frozen=True, tag="shutdown"):
    """Finish and exit 0."""


ToWorker = Prefill | Decode | MapPool | UnmapPool | Shutdown


class Ready(Struct, frozen=True, tag="ready"):
    """The worker has mapped pool and weights, warmed up and takes commands."""

    worker: str
    pid: int
    torch: str
    load_seconds: float
    warm_seconds: float
    mps: bool = False  # what it sees of its GPU: whether it is a client of MPS,
    sms: int = 0  # and how many SMs it has; 0 on a CPU


class TokenLogprob(Struct, frozen=True, array_like=True):
    """Log-probability of the sampled token and of the best alternatives ``(token, logprob)``."""

    logprob: float
    top: list[tuple[int, float]]


class PromptScores(Struct, frozen=True, array_like=True):
    """Of the command's chunk of that index, the prompt's tokens at positions ``first`` and after: what each
    had for a log-probability where it stands, and how many tokens had more, plus one."""

    chunk: int
    first: int
    scores: list[TokenLogprob]
    ranks: list[int]


class BatchDone(Struct, frozen=True, tag="done"):
    """One token per decoded sequence, or per chunk with ``last`` that is not pooled, in the command's order.

    NO_TOKEN where there was none: that sequence cannot go on, the others of the batch can.
    """

    batch: int
    tokens: list[int]
    seconds: float
    logprobs: dict[int, TokenLogprob] | None = None  # index in ``tokens`` -> logprob, where asked for
    prompt_scores: list[PromptScores] = []
    vectors: list[tuple[int, bytes]] = []  # index of the command's chunk -> float32[hidden]


class RankDone(Struct, frozen=True, tag="rank done"):
    """A rank other than the first has done its part of a batch; it sampled what the first one tells."""

    batch: int
    tokens: list[int]


class BatchFailed(Struct, frozen=True, tag="failed"):
    """The batch raised; the worker's sequence state is undefined and it is about to exit."""

    batch: int
    error: str


class Unmapped(Struct, frozen=True, tag="unmapped"):
    """The worker holds nothing of what was mapped at ``offset``."""

    worker: str
    offset: int


class Refused(Struct, frozen=True, tag="refused"):
    """The worker cannot serve this model: the reason, for people. It exits after sending this."""

    worker: str
    reason: str


FromWorker = Ready | BatchDone | RankDone | BatchFailed | Unmapped | Refused

# What decoding raises for bytes that are no message: text that is not UTF-8 and deep nests are no
# DecodeError.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Fork(Struct, frozen=True, tag="fork"):
    """Ask the zygote for a worker, with the worker's end of its socketpair."""

    environment: dict[str, str]  # beyond the zygote's own


class Forked(Struct, frozen=True, tag="forked"):
    """The worker runs; with a pidfd of it."""

    pid: int


class NotForked(Struct, frozen=True, tag="not forked"):
    """The system refused, by ``errno``, or the zygote may not (0)."""

    errno: int
    reason: str


class Reap(Struct, frozen=True, tag="reap"):
    """Ask the zygote how a worker that has ended did so; waits for one that has not."""

    pid: int


class Ended(Struct, frozen=True, tag="ended"):
    """``code`` as in ``Popen.returncode``."""

    code: int


ToZygote = Fork | Reap
FromZygote = Forked | NotForked | Ended

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
