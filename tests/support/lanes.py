"""A lane's facts by hand, for units without folders and profiles."""

from typing import Any

from msgspec import structs

from muxd.config import ModelConfig, QuotaConfig
from muxd.engine.lane import LaneSpec
from muxd.pool.windowed import Windowed


def lane_spec(  # noqa: PLR0913 - the facts of a model, in a row
    model: str,
    share: int,
    row_tokens: int,
    blocks_per_row: int,
    max_context: int,
    max_running: int,
    max_queue: int,
    capacity_rows: int,
    *,
    split: bool = False,
    apart: bool = False,
    cap: int = 100,
    whole: bool = False,
    state_rows: int = 0,
    windowed: Windowed | None = None,
    weight: float = 1.0,
    **settings: Any,
) -> LaneSpec:
    """``settings``: others of ``[[model]]``."""
    config = ModelConfig(model, model, max_queue=max_queue, quota=QuotaConfig(weight=weight))
    return LaneSpec(
        structs.replace(config, **settings),
        share,
        row_tokens,
        blocks_per_row,
        max_context,
        max_running,
        capacity_rows,
        split,
        apart,
        cap,
        whole,
        state_rows,
        windowed,
    )
