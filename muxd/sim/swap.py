"""Swapping, as llama-swap and Ollama do: one model computes at a time, and who is absent is loaded first.

A baseline of the simulator alone. A load takes a start and the weights' bytes at the storage's rate, and runs
beside what computes. Room is made by the models that have idled longest, once they have ended what they run;
who is to go takes no new request while an older one waits for the room.
"""

from collections.abc import Collection

from msgspec import Struct

from muxd.engine.batches import Batches
from muxd.engine.board import Board
from muxd.engine.lane import Lane
from muxd.engine.policies.base import Policy
from muxd.engine.policies.temporal import Temporal
from muxd.engine.rows import RowKeeper


class SwapTerms(Struct, frozen=True):
    """``memory``: bytes for weights; ``most``: models in it, 0 as many as fit; ``rate``: bytes a second that
    a load reads; ``start``: seconds of a load beside that. Defaults: a good NVMe drive, a server's start."""

    memory: float
    most: int = 0
    rate: float = 10e9
    start: float = 1.0


class Swap(Temporal):
    """``weights``: bytes of each model. Made by ``swap``."""

    name = "swap"
    weights: dict[str, int]
    terms: SwapTerms

    def __init__(self, board: Board, rows: RowKeeper, batches: Batches):
        super().__init__(board, rows, batches)
        self._resident: list[str] = []  # who idled longest first
        self._loading: tuple[str, float] | None = None  # and when it is there
        self._leaving: set[str] = set()
        self.loads = 0
        self._begun = False

    def launch(self, now: float) -> None:
        if not self._begun:
            self._begin()
        self._settle(now)
        super().launch(now)
        self._settle(now)

    def deadline(self, now: float) -> float | None:
        return self._loading[1] if self._loading else None

    def can_prefill(self, lane: Lane, now: float) -> bool:
        model = lane.spec.model
        if model not in self._resident or (model in self._leaving and not lane.waiting.head.rows):
            return False
        return super().can_prefill(lane, now)

    def _begin(self) -> None:
        """Models are opened after there is a policy. As many as fit, in the order of the configuration."""
        self._begun = True
        for model in self.board.lanes:
            if self._room(model, []):
                self._resident.append(model)
        self._resident.reverse()

    def _settle(self, now: float) -> None:
        if self._loading and now >= self._loading[1]:
            self._resident.append(self._loading[0])
            self._loading = None
        for model in list(self._resident):
            if self._busy(model):
                self._resident.remove(model)
                self._resident.append(model)
        self._evict()
        self._load_next(now)

    def _evict(self) -> None:
        """Who is to go and has ended what it ran."""
        for model in [one for one in self._leaving if not self._busy(one)]:
            self._leaving.remove(model)
            self._resident.remove(model)

    def _busy(self, model: str) -> bool:
        """It runs something, or has begun to."""
        lane = self.board.lanes[model]
        return bool(lane.running or lane.flights) or any(one.rows for one in lane.waiting)

    def _load_next(self, now: float) -> None:
        """The model of the oldest request that no resident one can serve; one load at a time."""
        absent = [lane for lane in self.board.waiting.lanes if lane.spec.model not in self._resident]
        if self._loading or not absent:
            return
        lane = min(absent, key=lambda lane: lane.waiting.head.arrived)
        model, since = lane.spec.model, lane.waiting.head.arrived
        for victim in self._resident:
            if self._room(model, self._leaving):
                break
            if not self._older(victim, since):
                self._leaving.add(victim)
        self._evict()
        if self._room(model, []):
            self._loading = model, now + self.terms.start + self.weights[model] / self.terms.rate
            self.loads += 1

    def _older(self, model: str, since: float) -> bool:
        """Its own queue has waited longer."""
        waiting = self.board.lanes[model].waiting
        return bool(waiting) and waiting.head.arrived < since

    def _room(self, model: str, without: Collection[str]) -> bool:
        kept = [one for one in self._resident if one not in without]
        held = sum(self.weights[one] for one in kept)
        most = self.terms.most or len(self.weights)
        return held + self.weights[model] <= self.terms.memory and len(kept) < most


def swap(weights: dict[str, int], terms: SwapTerms) -> type[Policy]:
    """The policy for models of these sizes. Raises ValueError for one that does not fit by itself."""
    large = [model for model, size in weights.items() if size > terms.memory]
    if large:
        raise ValueError(f"{large[0]} does not fit {terms.memory:.0f} bytes")
    return type("Swap", (Swap,), {"weights": weights, "terms": terms})
