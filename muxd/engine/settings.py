"""What ``[scheduler]`` of muxd.toml says to the scheduler."""

from msgspec import Struct


class Settings(Struct, frozen=True):
    """``[scheduler]`` of muxd.toml: times in seconds, budgets in tokens."""

    drain_timeout: float = 0.5
    prefill_tokens: int = 512
    look_ahead: int = 64
    adapt_period: float = 8.0
    run_ahead: bool = False  # give workers a decode step before the one in front of it is done
