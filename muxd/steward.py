"""The daemon's side of the local door: what muxctl may see (``Report``) and what it may change.

Made by ``muxd.daemon`` and handed to ``admin.server`` and to ``run``'s ``on_ready``. Every change goes
through the unit, on the daemon's own loop: it takes effect with the next decision.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from math import inf
from typing import get_args

from msgspec.structs import replace

from muxd.admin.schemas import (
    Audit,
    LoadModel,
    PolicyState,
    QuotaChange,
    QuotaRow,
    Status,
    UnloadModel,
)
from muxd.config import Config, ModelConfig, Policy, size, with_model
from muxd.engine.journal import FINISHED
from muxd.engine.trace import RequestTimes, Trace
from muxd.engine.unit import Unit
from muxd.errors import BadRequest, ConfigError, MuxdError, NotFound
from muxd.fleet.roster import Roster
from muxd.fleet.steps import Step
from muxd.pool.ledger import Usage
from muxd.report import Report

POLICIES = list(get_args(Policy))


@dataclass(kw_only=True)
class Steward(Report):
    """Implements ``admin.schemas.Steward``."""

    unit: Unit
    roster: Roster
    config: Config
    _weights: dict[str, float] = field(init=False, default_factory=dict)  # where they were changed

    def status(self) -> Status:
        return replace(super().status(), policy=self.unit.policy)

    # ---- quotas -----------------------------------------------------------------------------------

    def quota(self) -> list[QuotaRow]:
        return [self._quota(model, use) for model, use in self.arena.ledger.usage().items()]

    def set_quota(self, change: QuotaChange) -> list[QuotaRow]:
        """Raises NotFound, and BadRequest where a value cannot be, alone or beside the other models'."""
        usage = self.arena.ledger.usage()
        if change.model not in usage:
            known = ", ".join(usage) or "none"
            raise NotFound(f"model: no model {change.model!r} has a quota; those that have: {known}")
        weight = self._weight(change.model) if change.weight is None else change.weight
        if not 0 < weight < inf:
            raise BadRequest(f"weight: {weight} must be above 0 and finite", param="weight")
        try:
            least, most = self._bounds(change, usage[change.model])
            self.unit.set_quota(change.model, least, most, weight)
        except ConfigError as error:
            raise BadRequest(error.message) from None
        self._weights[change.model] = weight
        return self.quota()

    def _bounds(self, change: QuotaChange, use: Usage) -> tuple[int, int]:
        """Least and most head blocks. A guarantee is rounded down to blocks as at the start."""
        least = use.min_blocks if change.min is None else self._blocks("min", change.min)
        most = use.max_blocks if change.max is None else self._blocks("max", change.max)
        if least > most:
            raise BadRequest(
                f"min: {self._shown(change.min, least)} is above max, {self._shown(change.max, most)} "
                f"({change.model})",
                param="min",
            )
        return least, most

    def _blocks(self, field: str, text: str) -> int:
        count = size(text, key=field, whole=self.arena.nbytes) // self.arena.block_bytes
        total = self.arena.ledger.total_blocks
        if count > total:
            pool = f"the pool has {self.arena.nbytes} bytes"
            raise BadRequest(f"{field}: {text!r} is more than there is, {pool}", param=field)
        return count

    def _shown(self, text: str | None, blocks: int) -> str:
        return repr(text) if text is not None else f"{blocks * self.arena.block_bytes} bytes"

    def _quota(self, model: str, use: Usage) -> QuotaRow:
        block, quota = self.arena.block_bytes, self.unit.quota(model)
        return QuotaRow(
            model=model,
            weight=self._weight(model),
            min_bytes=use.min_blocks * block,
            quota_bytes=quota * block,
            max_bytes=use.max_blocks * block,
            used_bytes=use.blocks * block,
            cached_bytes=use.cached_blocks * block,
            borrowed_bytes=max(0, use.blocks - quota) * block,
            pool_bytes=self.arena.nbytes,
        )

    def _weight(self, model: str) -> float:
        return self._weights.get(model, self.entries[model].config.quota.weight)

    # ---- models -----------------------------------------------------------------------------------

    def load(self, wanted: LoadModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.load`` and ``Roster.add`` do, and BadRequest for settings that cannot be."""
        if not wanted.path:
            change = self.roster.load(wanted.model)
        else:
            try:
                change = self.roster.add(self._added(wanted))
            except ConfigError as error:
                raise BadRequest(error.message) from None
        self._weights.pop(wanted.model, None)  # as at the start
        return change.watch()

    def _added(self, wanted: LoadModel) -> ModelConfig:
        """Checked beside the models there are now. Raises ConfigError."""
        model = ModelConfig(name=wanted.model, path=wanted.path, dtype=wanted.dtype)
        models = [entry.config for entry in self.entries.values()]
        with_model(replace(self.config, model=models), model)
        return model

    def unload(self, wanted: UnloadModel) -> AsyncIterator[Step]:
        """Raises as ``Roster.unload`` does."""
        return self.roster.unload(wanted.model, now=wanted.now).watch()

    def audit(self) -> Audit:
        """Takes a moment on a large pool; nothing else is served meanwhile."""
        ledger, fault = self.arena.ledger, ""
        try:
            ledger.audit()
        except MuxdError as error:
            fault = error.message
        held = ledger.total_blocks - ledger.unheld_blocks
        return Audit(fault, ledger.total_blocks, ledger.free_blocks, ledger.cached_blocks, held)

    # ---- policy -----------------------------------------------------------------------------------

    def policy(self) -> PolicyState:
        return PolicyState(self.unit.policy, POLICIES)

    def set_policy(self, name: str) -> PolicyState:
        """Raises BadRequest for an unknown name and Busy while requests are served."""
        if name not in POLICIES:
            raise BadRequest(f"policy: {name!r} is none of {', '.join(POLICIES)}", param="policy")
        self.unit.set_policy(name)
        return self.policy()

    # ---- what happened ----------------------------------------------------------------------------

    def why(self, id: str) -> list[RequestTimes]:
        """Raises NotFound."""
        found = self.unit.journal.find(id, self.clock.now())
        if not found:
            raise NotFound(
                f"no request {id!r} is running or among the last {FINISHED} that ended; the id is the "
                'answer\'s "id" or its x-request-id header',
                code="unknown_request",
            )
        return found

    def trace(self) -> Trace:
        return self.unit.journal.timeline.snapshot(self.clock.now())
