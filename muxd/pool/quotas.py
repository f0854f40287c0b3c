"""Which quotas can hold together, and what a model can ever have under them. Called by ``pool.ledger``."""

from collections.abc import Collection

from muxd.errors import ConfigError
from muxd.pool.account import Account


def limit(total: int, account: Account, accounts: Collection[Account]) -> int:
    """Rows the model could hold in a pool of ``total`` blocks while all others have their guarantees."""
    others = sum(a.guaranteed for a in accounts if a is not account)
    blocks = min(account.max_blocks, total - others)
    return max(0, min(blocks // account.width, account.max_rows))


def check(total: int, accounts: Collection[Account]) -> None:
    """Raises ConfigError naming model and setting unless every guarantee, and a shortest sequence of each,
    can be had."""
    for a in accounts:
        if not 0 <= a.min_blocks <= a.max_blocks <= total:
            raise ConfigError(
                f"quota of model {a.name}: min {a.min_blocks}, max {a.max_blocks} blocks; "
                f"needs 0 <= min <= max <= {total} (the pool)"
            )
    if sum(a.min_blocks for a in accounts) > total:
        parts = ", ".join(f"{a.name} {a.min_blocks}" for a in accounts if a.min_blocks)
        raise ConfigError(
            f"quota.min of the models add up to more than the pool ({parts}; pool {total} "
            "blocks): lower a model's quota.min or raise pool.bytes"
        )
    for a in accounts:
        if limit(total, a, accounts) < a.least:
            what = "one row" if a.least == 1 else "one sequence with its state"
            raise ConfigError(
                f"model {a.name} could never hold {what} ({a.least * a.width} of {total} blocks): "
                "raise pool.bytes or its quota.max, or lower the quota.min of others"
            )
