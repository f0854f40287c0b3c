"""What goes first when blocks are needed: GreedyDual-Size (Cao and Irani 1997) over all models.

A cached row's priority is the inflation when it was last given back plus the seconds a block of it costs to
compute again; inflation rises to what is reclaimed, so a row that nobody asks for is overtaken in the end,
however dear. Windowed blocks of a faded row have the priority of a row that was given back when it faded: who
lacks them computes everything again. Equal priorities: least recently used.
"""

import heapq
from collections.abc import Iterable

import numpy as np

from muxd.pool.account import Account, Ids, Reclaimed


def cheapest(accounts: Iterable[Account], blocks: int, level: float) -> tuple[list[Ids], float]:
    """``blocks`` head blocks or a few more, given up and to be freed by the caller, and the inflation; it
    was ``level``. There must be that many."""
    heads = [head for account in accounts for head in account.heads()]
    heapq.heapify(heads)  # a call has its own number, so accounts are never compared
    victims: dict[str, tuple[Account, list[int], list[int]]] = {}
    while blocks > 0:
        priority, _, kind, account = heads[0]
        if (now := account.head(kind)) is None:
            heapq.heappop(heads)
        elif now != heads[0]:  # it went on, or went with its row
            heapq.heapreplace(heads, now)
        else:
            level = max(level, priority)
            row, freed = account.pop(kind)
            _, *rows = victims.setdefault(account.name, (account, [], []))
            rows[kind].append(row)
            blocks -= freed
    return [part for one in victims.values() for part in _given_up(*one)], level


def own(account: Account, rows: int, level: float) -> tuple[list[Ids], float]:
    """The same for so many cached rows of one model, whose ids are needed."""
    victims = []
    for _ in range(rows):
        head = account.head(Reclaimed.ROW)
        assert head is not None
        level = max(level, head[0])
        victims.append(account.pop(Reclaimed.ROW)[0])
    return _given_up(account, [], victims), level


def _given_up(account: Account, faded: list[int], cached: list[int]) -> list[Ids]:
    return [account.hollow_out(faded), account.drop(np.array(cached, dtype=np.int32))]
