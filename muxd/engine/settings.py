"""What ``[scheduler]`` of muxd.toml says to the scheduler."""

from msgspec import Struct

from muxd.config import SchedulerConfig, prefill_tokens


class Settings(Struct, frozen=True):
    """``[scheduler]`` of muxd.toml: times in seconds, budgets in tokens."""

    drain_timeout: float = 0.5
    prefill_tokens: int = 512
    prefill_seconds: float = 0.0  # a prefill is cut where it would take longer; 0: by tokens alone
    look_ahead: int = 64
    adapt_period: float = 8.0
    batch_timeout: float = (
        0.0  # a batch that takes longer, and much longer than expected, hangs; 0: none does
    )
    batch_timeout_factor: float = 20.0  # times what is expected
    run_ahead: bool = False  # give workers a decode step before the one in front of it is done


def settings_of(config: SchedulerConfig, *, gpu: bool) -> Settings:
    """Everything that has the same name in both, for the daemon and the simulator alike; what is left to the
    device as it is there."""
    names = set(Settings.__struct_fields__) & set(SchedulerConfig.__struct_fields__)
    said = {name: getattr(config, name) for name in names}
    return Settings(**said | {"prefill_tokens": prefill_tokens(config, gpu=gpu), "run_ahead": gpu})
