"""Cost tables made by hand, so that a test can work out every time itself."""

from muxd.cost.law import Memory
from muxd.cost.profile import FORMAT, Device, Grid, ModelProfile, Overhead, Profile, Shape
from muxd.cost.table import CostTable

SHAPE = Shape(layers=2, kv_heads=1, head_dim=64, max_positions=4096, dtype="bfloat16")


def linear(per_row: float, floor: float = 0.0, shares: tuple[int, ...] = (50, 100)) -> Grid:
    """floor + per_row · rows at full share, twice that at half; contexts cost nothing."""
    rows = [1, 1024]
    return Grid(
        shares=list(shares),
        rows=rows,
        contexts=[0, 1024],
        seconds=[[[(floor + per_row * n) * 100 / share] * 2 for n in rows] for share in shares],
    )


def model(
    prefill: float = 0.001, decode: float = 0.01, *, weights: int = 0, overhead: Overhead | None = None
) -> ModelProfile:
    """``prefill`` seconds a token; ``decode`` seconds a step of any batch; twice each at half the share.
    ``weights``: bytes that every batch reads."""
    return ModelProfile(
        shape=SHAPE,
        prefill=linear(prefill),
        decode=linear(1e-9, decode),
        weight_bytes=weights,
        overhead=overhead or Overhead(),
    )


def table(*, gpu: bool = False, memory: Memory | None = None, **models: ModelProfile) -> CostTable:
    return CostTable(Profile(FORMAT, Device("hand", 2, [50, 100], gpu=gpu, memory=memory), models))
