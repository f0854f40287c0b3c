"""Do the pool's books add up? Recomputes everything from the tables. Called by ``Ledger.audit`` only."""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from muxd.pool.account import Account, Ids, Usage
from muxd.pool.cache import Stamp


def faults(
    present: NDArray[np.bool_],
    free: Ids,
    accounts: Collection[Account],
    *,
    reserved: int,
    held: int,
    level: float,
) -> list[str]:
    """What is wrong, in words; nothing when all is well.

    ``present``: which head blocks there are, by id; ``free``: those that are free. ``reserved``, ``held``,
    ``level``: the ledger's running sums (blocks) and its inflation. O(blocks) in numpy, and one step for each
    cached row.
    """
    found = [fault for account in accounts for fault in account.faults()]
    found += _owners(present, np.concatenate([free, *(_used(account) for account in accounts)]))
    if held != (blocks := sum(account.blocks for account in accounts)):
        found.append(f"{held} blocks counted as held, rows hold {blocks}")
    if free.size + sum(a.owned for a in accounts) != present.sum():
        found.append("free, cached and held blocks do not add up to the pool")
    if reserved != (unfilled := sum(account.unfilled for account in accounts)):
        found.append(f"{reserved} blocks reserved, guarantees need {unfilled}")
    if any(stamp.level > level for account in accounts for stamp in _stamps(account)):
        found.append(f"inflation fell to {level}, below a cached row's stamp")
    return found


def told(usage: Mapping[str, Usage], calls: Iterable[tuple[str, str, int]]) -> str:
    """Every model's books and the last calls: what, of which model, how many."""
    books = ", ".join(f"{name}: {use}" for name, use in usage.items())
    return f"{books}; last calls: {', '.join(f'{call}({model}, {n})' for call, model, n in calls)}"


def _stamps(account: Account) -> list[Stamp]:
    return [*account.cache.idle.values(), *(account.faded.parts.values() if account.faded else ())]


def _used(account: Account) -> Ids:
    """Blocks of held and of cached rows; a row that is both shows up twice. A hollow one lacks some."""
    cached = np.array(list(account.cache.idle), dtype=np.int32)
    held = account.table[account.references > 0]
    blocks = np.concatenate([held, account.table[cached]]).reshape(-1)
    return blocks[blocks >= 0] if account.faded else blocks


def _owners(present: NDArray[np.bool_], seen: Ids) -> list[str]:
    if ((seen < 0) | (seen >= len(present))).any() or not present[seen].all():
        return ["block ids outside the pool"]
    owners = np.bincount(seen, minlength=len(present))
    found = []
    for blocks, what in ((present & (owners == 0), "lost"), (owners > 1, "owned twice")):
        if blocks.any():
            found.append(f"{blocks.sum()} blocks {what}: {np.flatnonzero(blocks)[:8].tolist()}")
    return found
