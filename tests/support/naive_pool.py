"""The pool's rules a second time, in plain Python from their statement: the judge of ``muxd.pool.ledger``.

Nothing is kept up to date here: everything is worked out again from the rows whenever somebody asks.
"""

from collections import Counter
from dataclasses import dataclass

Quota = tuple[int, int, int, int]  # blocks of a row, row ids, guaranteed and most blocks


def keys_of(path: str) -> list[bytes]:
    """A chain whose parents can be read off: b"a", b"ab", b"aba" for "aba"."""
    return [path[: i + 1].encode() for i in range(len(path))]


@dataclass
class Row:
    """Held while ``references``, else cached."""

    blocks: list[int]
    references: int = 1
    key: bytes | None = None
    stamp: tuple[float, int] = (0.0, 0)  # inflation and number of the release that last touched it


class NaivePool:
    def __init__(self, total: int):
        self.total = total
        self.lent: set[int] = set()
        self.leaving: set[int] = set()
        self.quota: dict[str, Quota] = {}
        self.rows: dict[str, dict[int, Row]] = {}
        self.cost: dict[str, float] = {}
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.level = 0.0
        self.releases = 0

    def add(self, model: str, quota: Quota) -> None:
        self.quota[model], self.rows[model], self.cost[model] = quota, {}, 0.0
        self.tokens[model, "asked"] = self.tokens[model, "matched"] = 0

    def remove(self, model: str) -> None:
        del self.quota[model], self.rows[model], self.cost[model]

    # -- who has what -----------------------------------------------------------------------------------

    def held(self, model: str) -> list[int]:
        return [row for row, it in self.rows[model].items() if it.references]

    def cached(self, model: str) -> list[int]:
        return [row for row, it in self.rows[model].items() if not it.references]

    def blocks(self, model: str) -> int:
        return len(self.held(model)) * self.quota[model][0]

    def cached_blocks(self) -> int:
        return sum(len(self.cached(model)) * self.quota[model][0] for model in self.quota)

    def unheld(self) -> int:
        return self.total + len(self.lent) - sum(self.blocks(model) for model in self.quota)

    def settle(self) -> None:
        """Recalled blocks that nobody holds are gone; a cache that has some of them goes as a whole."""
        for model, rows in self.rows.items():
            if any(self.leaving & set(rows[row].blocks) for row in self.cached(model)):
                for row in self.cached(model):
                    del rows[row]
                for it in rows.values():
                    it.key = None
        used = {b for rows in self.rows.values() for it in rows.values() for b in it.blocks}
        self.lent -= self.leaving - used
        self.leaving &= used

    def unfilled(self, model: str) -> int:
        width, _, low, _ = self.quota[model]
        return max(0, low // width * width - self.blocks(model))

    def owed(self) -> int:
        return max(0, sum(map(self.unfilled, self.quota)) - self.unheld())

    def may_grow(self, model: str, n: int) -> bool:
        if n == 0:
            return True
        width, max_rows, _, high = self.quota[model]
        need, held = n * width, self.blocks(model)
        others = sum(self.unfilled(m) for m in self.quota if m != model)
        within = need <= self.unheld() - others or need <= min(self.unheld(), self.unfilled(model))
        below = high >= self.total or held + need <= high
        return within and below and held // width + n <= max_rows

    def quotas_fit(self, quota: dict[str, Quota]) -> bool:
        if any(not 0 <= low <= high <= self.total for _, _, low, high in quota.values()):
            return False
        if sum(low for _, _, low, _ in quota.values()) > self.total:
            return False
        for model, (width, _, _, high) in quota.items():
            others = sum(low // w * w for m, (w, _, low, _) in quota.items() if m != model)
            if min(high, self.total - others) < width:
                return False
        return True

    # -- prefixes ---------------------------------------------------------------------------------------

    def index(self, model: str) -> dict[bytes, int]:
        return {it.key: row for row, it in self.rows[model].items() if it.key is not None}

    def match(self, model: str, keys: list[bytes]) -> list[int]:
        index = self.index(model)
        found: list[int] = []
        while len(found) < len(keys) and keys[len(found)] in index:
            found.append(index[keys[len(found)]])
        return found

    def whole(self, model: str, key: bytes) -> bool:
        """Every row up to this one is known."""
        return all(key[: i + 1] in self.index(model) for i in range(len(key)))

    def release(self, model: str, ids: list[int]) -> None:
        """Registered rows whose chain is whole stay; they and all that is cached before them are touched."""
        self.releases += 1
        rows, index = self.rows[model], self.index(model)
        for row in ids:
            rows[row].references -= 1
        gone = {row for row in ids if not rows[row].references}
        while lost := [r for r in gone if (key := rows[r].key) is None or not self.whole(model, key)]:
            for row in lost:
                gone.discard(row)
                del rows[row]
        for row in gone:
            key = rows[row].key
            assert key is not None
            for end in range(1, len(key) + 1):
                above = rows[index[key[:end]]]
                above.stamp = above.stamp if above.references else (self.level, self.releases)
        self.settle()

    # -- reclaim ----------------------------------------------------------------------------------------

    def price(self, model: str, row: int) -> tuple[float, int, int, int]:
        """What goes first: low priority, then long unused, then deep in its chain."""
        it = self.rows[model][row]
        level, call = it.stamp
        assert it.key is not None
        return level + self.cost[model] / self.quota[model][0], call, -len(it.key), row

    def reclaim(self, models: list[str]) -> None:
        """One row: the cheapest cached one of these models."""
        price, model = min((self.price(model, row), model) for model in models for row in self.cached(model))
        del self.rows[model][price[-1]]
        self.level = max(self.level, price[0])

    def make_room(self, model: str, n: int) -> None:
        """Row ids first, from the model's own; then blocks, from anybody's."""
        width, max_rows, _, _ = self.quota[model]
        while len(self.rows[model]) + n > max_rows:
            self.reclaim([model])
        while self.unheld() - self.cached_blocks() < n * width:
            self.reclaim(list(self.quota))

    def granted(self, model: str, ids: list[int], blocks: list[list[int]]) -> None:
        """The ledger's choice of free ids and blocks: any, as long as nobody has them."""
        width, max_rows, _, _ = self.quota[model]
        used = {b for rows in self.rows.values() for it in rows.values() for b in it.blocks}
        for row, part in zip(ids, blocks, strict=True):
            assert row not in self.rows[model]
            assert 0 <= row < max_rows
            assert len(part) == width
            assert not used & set(part)
            assert all(b < self.total or b in self.lent - self.leaving for b in part)
            self.rows[model][row] = Row(part)
            used.update(part)
