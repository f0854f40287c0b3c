"""A measured profile as ``Costs``: one device, the same seconds as the simulator's ``CostTable``."""

from muxd.cost.cells import Cells
from muxd.cost.estimate import Estimate, Reading, Source, check_query, degree_error
from muxd.cost.profile import ROOFLINE
from muxd.cost.table import CostTable


class Profiled:
    """``Costs`` of the models of ``table``, in the device's seconds: the daemon's overhead is not in them.

    Below the smallest measured share it goes on proportionally, where ``CostTable`` stands still.
    """

    def __init__(self, table: CostTable):
        self._table = table
        self.memory = table.device.memory
        self._cells: dict[str, tuple[Cells, Cells]] = {}

    def models(self) -> list[str]:
        return self._table.models

    def degrees(self, model: str) -> list[int]:
        self._table.model(model)
        return [1]

    def reading(self, model: str, gpus: int) -> Reading:
        measured = self._table.model(model)
        shape, state = measured.shape, 2.0 * measured.shape.state_bytes
        return Reading(measured.weight_bytes, shape.kv_bytes, measured.fixed, measured.sparse, state)

    def shares(self, model: str, gpus: int) -> list[int]:
        self._both(model, gpus)
        measured = self._table.model(model)
        return sorted(set(measured.prefill.shares) & set(measured.decode.shares))

    def prefill(self, model: str, gpus: int, share: int, batch: int, length: int) -> Estimate:
        check_query(model, share, batch, length, least=1)
        found = self._both(model, gpus)[0].estimate(batch * length, 0, share)
        extra = (batch - 1) * self._table.model(model).chunk_seconds
        return Estimate(found.seconds + extra, self._source(model, found.source, exact=extra == 0))

    def decode(self, model: str, gpus: int, share: int, batch: int, context: float) -> Estimate:
        check_query(model, share, batch, context, least=0)
        found = self._both(model, gpus)[1].estimate(batch, context, share)
        return Estimate(found.seconds, self._source(model, found.source))

    def _source(self, model: str, source: Source, exact: bool = True) -> Source:
        if self._table.model(model).measured.startswith(ROOFLINE):
            return "roofline"
        return "interpolated" if source == "measured" and not exact else source

    def _both(self, model: str, gpus: int) -> tuple[Cells, Cells]:
        measured = self._table.model(model)
        if gpus != 1:
            raise degree_error(model, gpus, [1], "a profile is of one device; use a roofline")
        if model not in self._cells:
            self._cells[model] = (
                Cells.of(measured.prefill, f"{model}.prefill"),
                Cells.of(measured.decode, f"{model}.decode"),
            )
        return self._cells[model]
