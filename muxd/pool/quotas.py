"""Which quotas can hold together, and what a model can ever have under them. Called by ``pool.ledger``."""

from collections.abc import Collection

from muxd.errors import ConfigError
from muxd.pool.account import Account


def limit(total: int, account: Account, accounts: Collection[Account]) -> int:
    """Rows the model could hold in a pool of ``total`` blocks while all others have their guarantees."""
    others = sum(a.guaranteed for a in accounts if a is not account)
    blocks = min(account.max_blocks, total - others)
    return max(0, min(blocks // account.width, account.max_rows))


def room(total: int, unheld: int, reserved: int, account: Account) -> int:
    """Head blocks by which the account may grow; ``unheld``: that nobody holds, ``reserved``: that the
    guarantees of all accounts lack."""
    own = account.unfilled
    # The first term is the rule. The second matters only while blocks are owed: two models below their
    # guarantees must not wait for each other's reservation, first come is first served.
    growth = max(unheld - (reserved - own), min(unheld, own))
    if account.max_blocks < total:  # a ceiling of the whole pool is none
        growth = min(growth, account.max_blocks - account.blocks)
    return max(0, growth)


def grants(total: int, room: int, wanted: Collection[tuple[Account, int]]) -> bool:
    """Whether each account can have so many rows more, in any order; ``room``: head blocks that nobody holds
    and no guarantee needs."""
    for account, rows in wanted:
        blocks = rows * account.width
        room -= max(0, blocks - account.unfilled)
        ceiling = account.max_blocks < total and account.blocks + blocks > account.max_blocks
        if room < 0 or ceiling or account.rows + rows > account.max_rows:
            return False
    return True


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
