"""A profile computed from a model's shape and a device's peaks, for devices nobody has measured yet.

Roofline: a batch takes the longer of moving its bytes and doing its arithmetic. Over shares, the arithmetic
rate grows with share^0.8 and the bandwidth reached with share^(1/3), fitted to LLaMA-7B on an A100 between
30 and 100 % of its multiprocessors (MuxServe, figure 3: prefill 2.6 times slower at 30 %, decode 1.46).
A prediction, never a measurement: its ``measured`` field says so.
"""

from msgspec import Struct

from muxd.cost.profile import Device, Grid, ModelProfile, Shape
from muxd.errors import ConfigError

_COMPUTE_EXPONENT, _BANDWIDTH_EXPONENT = 0.8, 1 / 3
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_ROWS = {
    "prefill": [1, 16, 64, 256, 512, 1024, 2048, 8192],
    "decode": [1, 2, 4, 8, 16, 32, 64, 128, 256, 512],
}
_CONTEXTS = [0, 256, 1024, 4096, 16384]


class Peak(Struct, frozen=True):
    """Datasheet peaks and the parts of them that kernels reach."""

    name: str
    flops: float  # a second, dense 16-bit
    bandwidth: float  # bytes a second
    compute_part: float = 0.6
    bandwidth_part: float = 0.75
    floor: float = 1.5e-3  # seconds of the smallest batch: launches


# NVIDIA's datasheets.
PEAKS = {
    "a100": Peak("a100", 312e12, 2.0e12),
    "h100": Peak("h100", 989e12, 3.35e12),
    "h200": Peak("h200", 989e12, 4.8e12),
}


def roofline(shape: Shape, parameters: int, heads: int, device: str) -> ModelProfile:
    """``parameters`` in all, ``heads`` query heads a layer. Raises ConfigError for an unknown device."""
    if device not in PEAKS:
        raise ConfigError(f"--roofline {device!r}: known are {', '.join(PEAKS)}")
    peak = PEAKS[device]
    grids = {
        phase: Grid(
            shares=rungs(),
            rows=rows,
            contexts=_CONTEXTS,
            seconds=[
                [[_seconds(shape, parameters, heads, peak, phase, n, c, s) for c in _CONTEXTS] for n in rows]
                for s in rungs()
            ],
        )
        for phase, rows in _ROWS.items()
    }
    return ModelProfile(
        shape=shape, prefill=grids["prefill"], decode=grids["decode"], measured=f"roofline of {peak.name}"
    )


def rungs() -> list[int]:
    """Shares of a device whose multiprocessors are handed out in tenths."""
    return list(range(10, 101, 10))


def device(name: str) -> Device:
    return Device(name=f"{name} (roofline)", cores=100, rungs=rungs())


def _seconds(
    shape: Shape, parameters: int, heads: int, peak: Peak, phase: str, rows: int, context: int, share: int
) -> float:
    """2 operations a parameter and token, 4 · head_dim a query head, layer and token attended to."""
    item = _ITEM_BYTES[shape.dtype]
    kv_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * item
    if phase == "prefill":
        attended, read = rows * (context + rows / 2), context + rows
    else:
        attended, read = rows * (context + 1), rows * (context + 1)
    operations = 2 * parameters * rows + 4 * shape.layers * heads * shape.head_dim * attended
    moved = parameters * item + kv_bytes * read
    part = share / 100
    compute = operations / (peak.flops * peak.compute_part * part**_COMPUTE_EXPONENT)
    memory = moved / (peak.bandwidth * peak.bandwidth_part * part**_BANDWIDTH_EXPONENT)
    return float(peak.floor + max(compute, memory))
