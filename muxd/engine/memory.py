"""How the pool is divided between the models under the policy that rules: quotas, guarantees or slices. Pure.

Keeps what the configuration and ``muxctl quota`` say of each model, and brings ledger, quotas and lanes in
line with it. Used by ``Scheduler`` alone.
"""

from collections.abc import Mapping

from msgspec import Struct

from muxd.engine.board import Board
from muxd.engine.lane import Lane, LaneSpec
from muxd.engine.policies.base import Memory as Kind
from muxd.engine.quota import Quotas
from muxd.engine.rows import RowKeeper
from muxd.errors import Busy


class Terms(Struct, frozen=True):
    """On which a model gets its account in the ledger: head blocks, and the most row ids it may use."""

    min_blocks: int
    max_blocks: int
    max_rows: int


class _Wish(Struct, frozen=True):
    """What was asked for a model, whatever the policy makes of it."""

    min_blocks: int
    max_blocks: int
    weight: float


class Memory:
    """``follow`` a policy's kind; ``set_quota`` and the models may change meanwhile."""

    def __init__(self, board: Board, rows: RowKeeper):
        self._board = board
        self._rows = rows
        self._kind: Kind = "shared"
        self._wishes: dict[str, _Wish] = {}

    def follow(self, kind: Kind) -> None:
        """Divide the pool that way from now on, by weight: nothing has been learnt yet. Raises ConfigError,
        changing nothing, where slices would leave a model without a single row."""
        usage = self._board.ledger.usage()
        for model, lane in self._board.lanes.items():
            use = usage[model]
            self._wishes.setdefault(
                model, _Wish(use.min_blocks, use.max_blocks, lane.spec.config.quota.weight)
            )
        quotas = self._divide()
        self._kind = kind
        self._rows.quotas = quotas if kind == "quotas" else None
        self._apply(quotas)

    def open(self, spec: LaneSpec, terms: Terms) -> Lane:
        """See ``Scheduler.open``."""
        bounds = (terms.min_blocks, terms.max_blocks)
        if self._kind == "slices":
            self._bind({model: (0, self._board.ledger.total_blocks) for model in self._wishes})
            bounds = (0, self._board.ledger.total_blocks)
        try:
            self._board.ledger.add_model(
                spec.model, spec.blocks_per_row, terms.max_rows, *bounds,
                row_tokens=spec.row_tokens, state_rows=spec.state_rows, windowed=spec.windowed,
            )  # fmt: skip
        except Exception:
            self._apply(self._divide())
            raise
        lane = self._board.open(spec)
        self._wishes[spec.model] = _Wish(terms.min_blocks, terms.max_blocks, spec.config.quota.weight)
        try:
            self._join(spec, terms)
        except Exception:
            self.close(spec.model)
            raise
        return lane

    def close(self, model: str) -> None:
        """The model is gone: the others divide what it had."""
        self._board.close(model)
        self._rows.forget(model)
        self._board.ledger.remove_model(model)
        self._wishes.pop(model, None)
        if (quotas := self._rows.quotas) is None:
            self._apply(self._divide())
        else:
            if model in quotas.quotas():
                quotas.remove(model)
            self._refit()

    def set_quota(self, model: str, min_blocks: int, max_blocks: int, weight: float) -> None:
        """See ``Scheduler.set_quota``."""
        before = self._wishes[model]
        wish = _Wish(min_blocks, max_blocks, weight)
        self._wishes[model] = wish
        try:
            self._try(model, wish)
        except Exception:
            self._wishes[model] = before
            self._try(model, before)
            raise
        self._refit()

    def learnt(self) -> Mapping[str, int]:
        """The quotas, where they move."""
        return self._rows.quotas.quotas() if self._rows.quotas is not None else {}

    def take_up(self, quotas: Mapping[str, int]) -> None:
        """See ``Quotas.take_up``; where quotas do not move nothing changes."""
        if self._rows.quotas is not None:
            self._rows.quotas.take_up(quotas)
            self._refit()

    def _join(self, spec: LaneSpec, terms: Terms) -> None:
        """Quotas that move take the model in and keep what they have learnt of the others."""
        if (quotas := self._rows.quotas) is None:
            self._apply(self._divide())
        self._check_fits()
        if quotas is not None:
            quotas.add(
                spec.model, terms.min_blocks, terms.max_blocks, spec.config.quota.weight, spec.least_blocks
            )
            self._refit()

    def _try(self, model: str, wish: _Wish) -> None:
        if self._kind == "slices":
            self._apply(self._divide())
        else:
            self._board.ledger.set_quota(model, wish.min_blocks, wish.max_blocks)
        self._check_fits()
        if self._rows.quotas is not None:
            self._rows.quotas.set(model, wish.min_blocks, wish.max_blocks, wish.weight)

    def _check_fits(self) -> None:
        for lane in self._board.lanes.values():
            rows = self._board.ledger.limit(lane.spec.model) - lane.spec.state_rows
            room = max(0, rows) * lane.spec.row_tokens
            if any(len(sequence.tokens) >= room for sequence in lane.sequences()):
                raise Busy(
                    f"{lane.spec.model} has a request longer than the {room} tokens that would be left; "
                    "try again later"
                )

    def _divide(self) -> Quotas:
        """Everybody's guarantee and, by weight, what nobody is guaranteed."""
        quotas = Quotas(self._board.ledger.total_blocks, self._board.settings.adapt_period)
        for model, wish in self._wishes.items():
            least = self._board.lanes[model].spec.least_blocks
            quotas.add(model, wish.min_blocks, wish.max_blocks, wish.weight, least)
        return quotas

    def _apply(self, quotas: Quotas) -> None:
        bounds = {model: (wish.min_blocks, wish.max_blocks) for model, wish in self._wishes.items()}
        if self._kind == "slices":
            bounds = {model: (quotas.quota(model), quotas.quota(model)) for model in self._wishes}
        # First down, then up: the guarantees hold together at every step.
        self._bind({model: (0, self._board.ledger.total_blocks) for model in bounds})
        self._bind(bounds)
        self._refit()

    def _bind(self, bounds: dict[str, tuple[int, int]]) -> None:
        for model, (least, most) in bounds.items():
            self._board.ledger.set_quota(model, least, most)

    def _refit(self) -> None:
        self._rows.look_again()
        for lane in self._board.lanes.values():
            lane.refit(self._board.ledger.limit(lane.spec.model))
