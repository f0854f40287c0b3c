"""What replanning would do, as plain data: the replanner says it, the local door carries it to muxctl."""

from msgspec import Struct


class ProposedModel(Struct, frozen=True):
    """One model of a proposal: where it is, where it should be, and what it is asked for."""

    model: str
    present: str
    proposed: str
    rate: float  # requests a second, measured
    prompt: float  # mean tokens
    output: float
    pinned: bool = False


class Proposal(Struct, frozen=True):
    """``gain``: requests a second more than now (times weights); ``cost``: requests not served while models
    move. ``reason`` is the decision's; ``moves`` are the models that would change their device."""

    rows: list[ProposedModel]
    adopt: bool
    reason: str
    gain: float
    cost: float
    moves: list[str]
