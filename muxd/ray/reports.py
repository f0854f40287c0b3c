"""What a host says of itself: plain data, made of its muxd's own answers. Pure."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from muxd.admin.schemas import ModelInfo, Status

# Of a host whose muxd does not answer: any more, or not yet.
GONE, STARTING = "gone", "starting"


class ModelReport(Struct, frozen=True):
    """One model of a host; ``state`` is its muxd's word (``admin.schemas.ModelInfo``)."""

    state: str
    running: int = 0
    waiting: int = 0
    free_rows: int = 0  # of its pool, reclaimable ones included
    tokens_per_second: float = 0.0  # since the report before
    weights_bytes: int = 0
    aliases: tuple[str, ...] = ()


class HostReport(Struct, frozen=True):
    """A host as its node sees it. ``taking``: "ok", or why it takes no requests; ``plan``: the name of the
    file that it serves, unless its muxd was there before with settings of its own, and is ``adopted``."""

    host: str
    url: str
    taking: str
    models: dict[str, ModelReport] = {}
    plan: str = ""
    adopted: bool = False

    @property
    def load(self) -> int:
        """Sequences of all models: they share the host's devices."""
        return sum(model.running + model.waiting for model in self.models.values())


class Seen(Struct, frozen=True):
    """A report, and how many seconds ago it came."""

    report: HostReport
    age: float


def model_reports(
    status: Status, models: Sequence[ModelInfo], before: Mapping[str, int], seconds: float
) -> dict[str, ModelReport]:
    """``before``: tokens of each model ``seconds`` ago; none are known of one that is not in it."""
    return {one.name: _model(status, one, before.get(one.name), seconds) for one in models}


def _model(status: Status, one: ModelInfo, before: int | None, seconds: float) -> ModelReport:
    pool = status.devices.get(one.device, status.pool)
    free = (pool.free_blocks + pool.cached_blocks) * pool.block_bytes
    fresh = max(0, one.tokens_total - before) if before is not None else 0
    return ModelReport(
        state=one.state,
        running=one.running,
        waiting=one.waiting,
        free_rows=free // one.row_bytes if one.row_bytes else 0,
        tokens_per_second=fresh / seconds if seconds > 0 else 0.0,
        weights_bytes=one.weights_bytes,
        aliases=tuple(one.config.aliases),
    )
