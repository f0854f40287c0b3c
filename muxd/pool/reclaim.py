"""Which cached rows go first when blocks are needed: GreedyDual-Size (Cao and Irani 1997) over all models.

A row's priority is the inflation when it was last given back plus the seconds a block of it costs to compute
again; inflation rises to what is reclaimed, so a row that nobody asks for is overtaken in the end, however
dear. Equal priorities: least recently used.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable

from muxd.pool.account import Account


def cheapest(accounts: Iterable[Account], blocks: int, level: float) -> tuple[dict[str, list[int]], float]:
    """Cached rows by model, of ``blocks`` head blocks or a few more, and the inflation; it was ``level``.

    They are out of their caches then; their blocks are the caller's to free. There must be that many.
    """
    heads = [(*account.next_idle, account) for account in accounts if account.cached_rows]
    heapq.heapify(heads)  # a release has its own number, so accounts are never compared
    victims: dict[str, list[int]] = defaultdict(list)
    while blocks > 0:
        priority, _, account = heads[0]
        level = max(level, priority)
        victims[account.name].append(account.cache.pop())
        blocks -= account.width
        if account.cached_rows:
            heapq.heapreplace(heads, (*account.next_idle, account))
        else:
            heapq.heappop(heads)
    return victims, level


def own(account: Account, rows: int, level: float) -> tuple[list[int], float]:
    """The same for so many cached rows of one model."""
    victims = []
    for _ in range(rows):
        level = max(level, account.next_idle[0])
        victims.append(account.cache.pop())
    return victims, level
