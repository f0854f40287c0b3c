"""Costs computed from a model's shape and a device's peaks, where nobody has measured.

Roofline with tensor parallelism, for each of ``gpus`` devices:

    seconds = batch + max(host launches, max(weights / bandwidth, operations / flops)
                                         + keys and values / bandwidth + all-reduces)

Attention runs after the matrices, so its reads come on top, as do states, which are read and written. An
all-reduce of a ring moves 2 (g - 1) / g of the activations over a link (two a layer: after attention and
after the feed-forward part; Megatron-LM, Shoeybi et al. 2019). Parts reached and dependence on the share:
``peaks.Reach``.
"""

from collections.abc import Mapping

from msgspec import Struct

from muxd.cost.estimate import Estimate, Reading, check_query, degree_error, model_error
from muxd.cost.experts import Sparse
from muxd.cost.law import Memory
from muxd.cost.peaks import CAPTURED, EAGER, Peak, Reach, peak
from muxd.cost.profile import ROOFLINE, Device, Grid, ModelProfile, Shape
from muxd.cost.shapes import CATALOGUE, ModelShape
from muxd.device.green import PARTS
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models.state_layout import FLOAT

_ROWS = {
    "prefill": [1, 16, 64, 256, 512, 1024, 2048, 8192],
    "decode": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
}
_CONTEXTS = [0, 256, 1024, 4096, 16384]
# Also below the parts of a GPU: a process of its own may have any percent of it.
_SHARES = [1, 2, 3, 5, 7, 10, 12, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90, 100]


class Work(Struct, frozen=True):
    """What a batch asks for."""

    prefill: bool
    tokens: int  # through all layers
    answers: int  # sequences whose next token is wanted
    attended: float  # pairs of a token and one it attends to
    read: float  # tokens whose K and V are read from the pool


def prefill_work(batch: int, length: int, context: float = 0) -> Work:
    """``batch`` prompts of ``length`` tokens, ``context`` tokens before each."""
    return Work(True, batch * length, batch, batch * length * (context + length / 2), batch * context)


def decode_work(batch: int, context: float) -> Work:
    return Work(False, batch, batch, batch * (context + 1), batch * (context + 1))


def operations(shape: ModelShape, work: Work) -> float:
    """2 a parameter and token, of experts those that it has chosen; 4 · head_dim a query head, layer and
    pair; of layers that keep a state 8 a number of it and token."""
    idle = shape.parameters - shape.active_parameters
    matrices = 2 * ((shape.body_parameters - idle) * work.tokens + shape.head_parameters * work.answers)
    attention = 4 * shape.attending * shape.heads * shape.head_dim * work.attended
    return matrices + attention + 8 * shape.state_bytes / FLOAT * work.tokens


def seconds(
    shape: ModelShape, peak: Peak, reach: Reach, work: Work, gpus: int, share: int, dtype: Dtype = "bfloat16"
) -> float:
    """By the formula above, in each of ``gpus`` devices' ``share`` percent."""
    item, part = ITEM_BYTES[dtype], share / 100
    flops = peak.flops * (reach.prefill_flops if work.prefill else reach.decode_flops)
    flops *= float(part**reach.flops_exponent)
    bandwidth = peak.bandwidth * reach.bandwidth * float(part**reach.bandwidth_exponent)
    weights = reading_of(shape, 1, dtype).bytes_of(work.tokens)
    matrices = max(weights / bandwidth, operations(shape, work) / flops) / gpus
    # A state is read and written once a batch, whatever the sequence has of tokens in it.
    moved = shape.kv_bytes(gpus, dtype) * work.read + 2 * shape.state_bytes * work.answers
    attention = moved / bandwidth
    device = matrices + attention + _reductions(shape, peak, reach, work.tokens * item, gpus)
    host = shape.layers * (reach.prefill_layer if work.prefill else reach.decode_layer)
    return reach.batch + max(host, device)


def reading_of(shape: ModelShape, gpus: int, dtype: Dtype, fixed: float = 0.0) -> Reading:
    """Of the weights all but an embedding that is looked up, and experts that nobody has chosen."""
    item = shape.packed / shape.parameters if shape.packed else float(ITEM_BYTES[dtype])
    always = shape.body_parameters + shape.head_parameters - shape.expert_parameters
    experts, sparse = shape.experts, None
    if experts is not None:
        sparse = Sparse(shape.expert_parameters * item / gpus, experts.count, experts.chosen)
    kv, state = shape.kv_bytes(gpus, dtype), 2 * shape.state_bytes
    return Reading(always * item / gpus, kv, fixed, sparse, state)


def memory(peak: Peak, reach: Reach) -> Memory:
    """Of a device, over the share."""
    alone = [
        peak.bandwidth * reach.bandwidth * (share / 100) ** reach.bandwidth_exponent for share in _SHARES
    ]
    return Memory(peak.bandwidth * reach.together, _SHARES, alone)


def _reductions(shape: ModelShape, peak: Peak, reach: Reach, width: int, gpus: int) -> float:
    """``width``: bytes of one activation of all tokens."""
    if gpus == 1:
        return 0.0
    moved = 2 * (gpus - 1) / gpus * width * shape.hidden
    return 2 * shape.layers * (reach.allreduce + moved / (peak.link * reach.link))


class Roofline:
    """``Costs`` of any shapes on one kind of device, the catalogue's if none are given. ``dtype``: of all
    models, or of each; it counts in bytes, the peaks are those of 16-bit numbers.

    Raises ConfigError for a device that is not known. Whether weights fit the device's memory is not asked.
    """

    def __init__(
        self,
        device: str | Peak,
        shapes: Mapping[str, ModelShape] | None = None,
        reach: Reach = EAGER,
        dtype: Dtype | Mapping[str, Dtype] = "bfloat16",
    ):
        self.peak = peak(device) if isinstance(device, str) else device
        self.reach = reach
        self._shapes = dict(CATALOGUE if shapes is None else shapes)
        every = dict.fromkeys(self._shapes, dtype) if isinstance(dtype, str) else dtype
        self._dtypes: dict[str, Dtype] = {name: every[name] for name in self._shapes}
        self.memory = memory(self.peak, reach)

    def models(self) -> list[str]:
        return list(self._shapes)

    def reading(self, model: str, gpus: int) -> Reading:
        shape, dtype = self._check(model, gpus), self._dtypes[model]
        return reading_of(shape, gpus, dtype, self.reach.batch)

    def degrees(self, model: str) -> list[int]:
        return self._shape(model).degrees()

    def shares(self, model: str, gpus: int) -> list[int]:
        self._check(model, gpus)
        return rungs()

    def prefill(self, model: str, gpus: int, share: int, batch: int, length: int) -> Estimate:
        check_query(model, share, batch, length, least=1)
        return self._estimate(model, gpus, share, prefill_work(batch, length))

    def decode(self, model: str, gpus: int, share: int, batch: int, context: float) -> Estimate:
        check_query(model, share, batch, context, least=0)
        return self._estimate(model, gpus, share, decode_work(batch, context))

    def _estimate(self, model: str, gpus: int, share: int, work: Work) -> Estimate:
        shape = self._check(model, gpus)
        found = seconds(shape, self.peak, self.reach, work, gpus, share, self._dtypes[model])
        return Estimate(found, "roofline")

    def _shape(self, model: str) -> ModelShape:
        if model not in self._shapes:
            raise model_error(model, self._shapes, "the roofline", "give its shape (muxd.cost.shapes)")
        return self._shapes[model]

    def _check(self, model: str, gpus: int) -> ModelShape:
        shape = self._shape(model)
        if gpus not in (known := shape.degrees()):
            raise degree_error(model, gpus, known, f"its {shape.heads} heads must be cut evenly")
        return shape


# ---- a profile of one device, as `muxd profile --roofline` writes it ----------------------------------


def roofline(shape: Shape, parameters: int, heads: int, device: str) -> ModelProfile:
    """``parameters`` in all, ``heads`` query heads a layer. Raises ConfigError for an unknown device.

    The vocabulary is not known here, so that the embedding is counted as if it were multiplied with.
    """
    whole = ModelShape(
        layers=shape.layers,
        hidden=heads * shape.head_dim,
        heads=heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=0,
        vocab=0,
        parameters=parameters,
        max_positions=shape.max_positions,
        kv_dtype=shape.kv_dtype,
        delta=shape.delta,
        row_blocks=shape.row_blocks,
    )
    found = peak(device)

    def grid(phase: str) -> Grid:
        def cell(rows: int, context: int, share: int) -> float:
            work = prefill_work(1, rows, context) if phase == "prefill" else decode_work(rows, context)
            return seconds(whole, found, CAPTURED, work, 1, share, shape.dtype)

        rows = _ROWS[phase]
        cells = [[[cell(n, c, s) for c in _CONTEXTS] for n in rows] for s in _SHARES]
        return Grid(shares=_SHARES, rows=rows, contexts=_CONTEXTS, seconds=cells)

    return ModelProfile(
        shape=shape,
        prefill=grid("prefill"),
        decode=grid("decode"),
        weight_bytes=round(reading_of(whole, 1, shape.dtype).weights),
        fixed=CAPTURED.batch,
        measured=f"{ROOFLINE} of {found.name}",
    )


def rungs() -> list[int]:
    """Shares of a GPU as the daemon divides it."""
    return [100 * (part + 1) // PARTS for part in range(PARTS)]


def device(name: str) -> Device:
    found = peak(name)
    return Device(
        name=f"{name} (roofline)", cores=100, rungs=rungs(), gpu=True, memory=memory(found, CAPTURED)
    )
