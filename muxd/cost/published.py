"""The table of an A100-80GB that MuxServe publishes (its repository, examples/placement/llama.json).

JSON: model -> GPUs -> share in percent -> batch -> prompt length -> {prefill, decoding} in milliseconds, -1
where nothing was measured. LLaMA 7B to 65B in float16 on 1 to 8 GPUs, one process alone at each share. Some
cells are up to eight times their neighbours; ``cells.Cells`` lowers those and fills the holes.
"""

from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from muxd.cost.analytic import Roofline, memory
from muxd.cost.cells import Cells, Cube
from muxd.cost.estimate import Estimate, Reading, check_query, degree_error, model_error
from muxd.cost.peaks import EAGER, peak
from muxd.errors import ConfigError

_DEVICE = "a100"


class _Cell(Struct, frozen=True):
    prefill: float
    decoding: float


_Lengths = dict[int, _Cell]
_Shares = dict[int, dict[int, _Lengths]]  # share -> batch -> length
_Table = dict[str, dict[int, _Shares]]


class Wrong(Struct, frozen=True):
    """A cell that contradicts others: a larger batch or a smaller share was faster."""

    model: str
    gpus: int
    share: int
    batch: int
    length: int
    phase: str
    published: float  # seconds
    used: float


class Published:
    """``Costs`` from the table. ``source`` names it in errors. What memory does is the datasheet's."""

    def __init__(self, table: _Table, source: str):
        self._source = source
        self.memory = memory(peak(_DEVICE), EAGER)
        self._roofline = Roofline(_DEVICE, dtype="float16")
        self._cells = {
            model: {
                gpus: _both(shares, f"{source}: {model}, {gpus} GPUs") for gpus, shares in degrees.items()
            }
            for model, degrees in table.items()
        }

    @classmethod
    def read(cls, path: Path) -> "Published":
        """Raises ConfigError naming the file and the place in it."""
        try:
            return cls(msgspec.json.decode(path.read_bytes(), type=_Table), str(path))
        except OSError as error:
            raise ConfigError(
                f"cannot read the latency table {path}: {error.strerror}; "
                "it is examples/placement/llama.json of MuxServe's repository"
            ) from None
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path} is not a table of latencies as MuxServe writes them: {error}"
            ) from None

    def models(self) -> list[str]:
        return list(self._cells)

    def degrees(self, model: str) -> list[int]:
        return sorted(self._model(model))

    def reading(self, model: str, gpus: int) -> Reading:
        self._both(model, gpus)
        return self._roofline.reading(model, gpus)

    def shares(self, model: str, gpus: int) -> list[int]:
        return self._both(model, gpus)[0].shares

    def prefill(self, model: str, gpus: int, share: int, batch: int, length: int) -> Estimate:
        check_query(model, share, batch, length, least=1)
        return self._both(model, gpus)[0].estimate(batch, length, share)

    def decode(self, model: str, gpus: int, share: int, batch: int, context: float) -> Estimate:
        check_query(model, share, batch, context, least=0)
        return self._both(model, gpus)[1].estimate(batch, context, share)

    def cells(self, model: str, gpus: int, phase: str) -> Cells:
        """``phase``: prefill or decode."""
        return self._both(model, gpus)[phase == "decode"]

    def wrong(self, factor: float = 1.5) -> list[Wrong]:
        """Cells published at more than ``factor`` times what is used for them."""
        return [
            Wrong(
                model, gpus, *at, phase,
                published=_at(cells, cells.raw, at), used=_at(cells, cells.seconds, at),
            )
            for model, degrees in self._cells.items()
            for gpus, both in degrees.items()
            for phase, cells in zip(("prefill", "decode"), both, strict=True)
            for at in cells.wrong(factor)
        ]  # fmt: skip

    def _model(self, model: str) -> dict[int, tuple[Cells, Cells]]:
        if model not in self._cells:
            raise model_error(model, self._cells, self._source, "use a roofline (muxd.cost.analytic)")
        return self._cells[model]

    def _both(self, model: str, gpus: int) -> tuple[Cells, Cells]:
        degrees = self._model(model)
        if gpus not in degrees:
            raise degree_error(
                model, gpus, sorted(degrees), f"{self._source} has no others; choose one of these"
            )
        return degrees[gpus]


def _both(shares: _Shares, where: str) -> tuple[Cells, Cells]:
    """Prefill and decode."""
    batches = sorted({batch for lines in shares.values() for batch in lines})
    lengths = sorted({length for lines in shares.values() for cells in lines.values() for length in cells})
    axes = (sorted(shares), batches, lengths)
    if not all(axis and axis[0] >= 1 for axis in axes):
        raise ConfigError(f"{where}: shares, batches and lengths must be there and at least 1")
    raw = np.full((2, len(shares), len(batches), len(lengths)), np.nan)
    for i, share in enumerate(axes[0]):
        for j, batch in enumerate(batches):
            for k, length in enumerate(lengths):
                cell = shares[share].get(batch, {}).get(length)
                if cell is not None:
                    raw[:, i, j, k] = [_seconds(cell.prefill), _seconds(cell.decoding)]
    return Cells(axes, raw[0], f"{where}, prefill"), Cells(axes, raw[1], f"{where}, decoding")


def _seconds(milliseconds: float) -> float:
    return milliseconds / 1e3 if 0 < milliseconds < float("inf") else float("nan")


def _at(cells: Cells, cube: Cube, at: tuple[int, int, int]) -> float:
    share, row, context = at
    place = cells.shares.index(share), cells.rows.index(row), cells.contexts.index(context)
    return float(cube[place])
