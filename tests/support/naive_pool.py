"""The pool's rules a second time, in plain Python from their statement: the judge of ``muxd.pool.ledger``.

Nothing is kept up to date here: everything is worked out again from the rows whenever somebody asks.
"""

from collections import Counter
from dataclasses import dataclass, field

Quota = tuple[int, int, int, int]  # blocks of a row, row ids, guaranteed and most blocks


def keys_of(path: str) -> list[bytes]:
    """A chain whose parents can be read off: b"a", b"ab", b"aba" for "aba"."""
    return [path[: i + 1].encode() for i in range(len(path))]


@dataclass
class Window:
    """Layers with these columns of a row see the last ``tokens``; a row has ``row_tokens``."""

    tokens: int
    columns: list[int]
    row_tokens: int

    def passed(self, rows: int) -> int:
        """Rows of which the token behind the first ``rows`` sees nothing."""
        position, count = rows * self.row_tokens, 0
        while (count + 1) * self.row_tokens - 1 <= position - self.tokens:
            count += 1
        return count


NO_WINDOW = Window(1 << 60, [], 1)


@dataclass
class Row:
    """Held while ``references``, else cached. ``seers``: holders that have not passed it."""

    blocks: dict[int, int]  # by column
    references: int = 1
    seers: int = 1
    key: bytes | None = None
    stamp: tuple[float, int] = (0.0, 0)  # inflation and number of the call that last gave it back
    faded: tuple[float, int] | None = None  # since when nobody sees it, while its windowed blocks are there


@dataclass(eq=False)
class Running:
    """A sequence: its rows, the path of tokens they hold, how many are registered and how many passed."""

    model: str
    path: str
    rows: list[int]
    registered: int
    passed: int


@dataclass
class NaivePool:
    total: int
    lent: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    quota: dict[str, Quota] = field(default_factory=dict)
    window: dict[str, Window] = field(default_factory=dict)
    rows: dict[str, dict[int, Row]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    level: float = 0.0
    calls: int = 0

    def add(self, model: str, quota: Quota, window: Window = NO_WINDOW) -> None:
        self.quota[model], self.rows[model], self.cost[model] = quota, {}, 0.0
        self.window[model] = window
        self.tokens[model, "asked"] = self.tokens[model, "matched"] = 0

    def remove(self, model: str) -> None:
        del self.quota[model], self.rows[model], self.cost[model], self.window[model]

    # -- who has what -----------------------------------------------------------------------------------

    def held(self, model: str) -> list[int]:
        return [row for row, it in self.rows[model].items() if it.references]

    def cached(self, model: str) -> list[int]:
        return [row for row, it in self.rows[model].items() if not it.references]

    def blocks(self, model: str) -> int:
        """A row is needed whole while somebody sees it."""
        width, windowed = self.quota[model][0], len(self.window[model].columns)
        return sum(width if self.rows[model][row].seers else width - windowed for row in self.held(model))

    def there(self, model: str) -> int:
        return sum(len(it.blocks) for it in self.rows[model].values())

    def cached_blocks(self) -> int:
        return sum(self.there(model) - self.blocks(model) for model in self.quota)

    def unheld(self) -> int:
        return self.total + len(self.lent) - sum(self.blocks(model) for model in self.quota)

    def whole_row(self, model: str, row: int) -> bool:
        return len(self.rows[model][row].blocks) == self.quota[model][0]

    def hollow_out(self, model: str, row: int) -> None:
        it = self.rows[model][row]
        it.faded = None
        it.blocks = {c: b for c, b in it.blocks.items() if c not in self.window[model].columns}

    def drop_cache(self, model: str) -> None:
        for row in self.cached(model):
            del self.rows[model][row]
        for row, it in self.rows[model].items():
            it.key = None
            if it.faded:
                self.hollow_out(model, row)

    def settle(self) -> None:
        """Recalled blocks that nobody needs are gone; a cache that has some of them goes as a whole."""
        for model, rows in self.rows.items():
            for row, it in rows.items():
                windowed = {b for c, b in it.blocks.items() if c in self.window[model].columns}
                if it.faded and windowed & self.leaving:
                    self.hollow_out(model, row)
            if any(self.leaving & set(rows[row].blocks.values()) for row in self.cached(model)):
                self.drop_cache(model)
        used = {b for rows in self.rows.values() for it in rows.values() for b in it.blocks.values()}
        self.lent -= self.leaving - used
        self.leaving &= used

    def unfilled(self, model: str) -> int:
        width, _, low, _ = self.quota[model]
        return max(0, low // width * width - self.blocks(model))

    def owed(self) -> int:
        return max(0, sum(map(self.unfilled, self.quota)) - self.unheld())

    def may_grow(self, model: str, rows: int, blocks: int | None = None) -> bool:
        """By so many rows, which are whole unless ``blocks`` says what they take."""
        width, max_rows, _, high = self.quota[model]
        need, held = rows * width if blocks is None else blocks, self.blocks(model)
        if len(self.held(model)) + rows > max_rows:
            return False
        if need == 0:
            return True
        others = sum(self.unfilled(m) for m in self.quota if m != model)
        within = need <= self.unheld() - others or need <= min(self.unheld(), self.unfilled(model))
        return within and (high >= self.total or held + need <= high)

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
        """The longest known prefix of which everything is there that what comes behind it sees."""
        index, window = self.index(model), self.window[model]
        found: list[int] = []
        while len(found) < len(keys) and keys[len(found)] in index:
            found.append(index[keys[len(found)]])
        while not all(self.whole_row(model, row) for row in found[window.passed(len(found)) :]):
            found.pop()
        return found

    def needs(self, model: str, shared: list[int], fresh: int) -> tuple[int, int]:
        """Rows and blocks more that are held when ``shared`` have a holder more, and ``fresh`` come new."""
        width, windowed = self.quota[model][0], len(self.window[model].columns)
        rows, blocks = fresh, fresh * width
        for i, row in enumerate(shared):
            it, early = self.rows[model][row], i < self.window[model].passed(len(shared))
            rows += not it.references
            if not it.references:
                blocks += width - windowed if early else width
            elif not it.seers and not early:
                blocks += windowed
        return rows, blocks

    def adopt(self, model: str, shared: list[int]) -> None:
        self.calls += 1
        for i, row in enumerate(shared):
            it = self.rows[model][row]
            if i >= self.window[model].passed(len(shared)):
                it.seers, it.faded = it.seers + 1, None
            elif not it.references and self.whole_row(model, row) and it.faded is None:
                it.faded = self.level, self.calls
            it.references += 1

    def whole(self, model: str, key: bytes) -> bool:
        """Every row up to this one is known."""
        return all(key[: i + 1] in self.index(model) for i in range(len(key)))

    def name(self, model: str, row: int, key: bytes) -> None:
        """Who has a key keeps it, unless windowed blocks are missing there, and here they are not."""
        other = self.index(model).get(key)
        if other is not None:
            if self.whole_row(model, other) or not self.whole_row(model, row):
                return
            self.rows[model][other].key = None
            if not self.rows[model][other].references:
                del self.rows[model][other]
        self.rows[model][row].key = key

    def fade(self, model: str, ids: list[int]) -> None:
        """A holder sees them no more; what nobody could find is free, the rest may be taken."""
        self.calls += 1
        for row in ids:
            self.rows[model][row].seers -= 1
        self._unseen(model, {row for row in ids if not self.rows[model][row].seers})
        self.settle()

    def _unseen(self, model: str, ids: set[int]) -> None:
        for row in ids:
            self.rows[model][row].faded = self.level, self.calls
            if self.rows[model][row].key is None:
                self.hollow_out(model, row)

    def release(self, model: str, ids: list[int], passed: int = 0) -> None:
        """Registered rows whose chain is whole stay; they and all that is cached before them are touched."""
        self.calls += 1
        rows, index = self.rows[model], self.index(model)
        for i, row in enumerate(ids):
            rows[row].references -= 1
            rows[row].seers -= i >= passed
        if self.window[model].columns:
            last = {row for row in ids[passed:] if rows[row].references and not rows[row].seers}
            self._unseen(model, last)
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
                above.stamp = above.stamp if above.references else (self.level, self.calls)
        self.settle()

    # -- reclaim ----------------------------------------------------------------------------------------

    def price(self, model: str, row: int, *, part: bool) -> tuple[float, int, bool, int, int]:
        """What goes first: low priority, then long unused, then parts, then what is deep in its chain."""
        it = self.rows[model][row]
        level, call = it.faded if part and it.faded else it.stamp
        assert it.key is not None
        return level + self.cost[model] / self.quota[model][0], call, not part, -len(it.key), row

    def reclaim(self, models: list[str], *, rows_only: bool = False) -> None:
        """The cheapest cached row of these models, or the windowed blocks of a faded one."""
        found = [
            (self.price(model, row, part=False), model) for model in models for row in self.cached(model)
        ]
        if not rows_only:
            found += [
                (self.price(model, row, part=True), model)
                for model in models
                for row, it in self.rows[model].items()
                if it.faded
            ]
        price, model = min(found)
        if price[2]:
            del self.rows[model][price[-1]]
        else:
            self.hollow_out(model, price[-1])
        self.level = max(self.level, price[0])

    def make_room(self, model: str, n: int) -> None:
        """Row ids first, from the model's own; then blocks, from anybody's."""
        width, max_rows, _, _ = self.quota[model]
        while len(self.rows[model]) + n > max_rows:
            self.reclaim([model], rows_only=True)
        while self.unheld() - self.cached_blocks() < n * width:
            self.reclaim(list(self.quota))

    def granted(self, model: str, ids: list[int], blocks: list[list[int]]) -> None:
        """The ledger's choice of free ids and blocks: any, as long as nobody has them."""
        width, max_rows, _, _ = self.quota[model]
        used = {b for rows in self.rows.values() for it in rows.values() for b in it.blocks.values()}
        for row, part in zip(ids, blocks, strict=True):
            assert row not in self.rows[model]
            assert 0 <= row < max_rows
            assert len(part) == width
            assert not used & set(part)
            assert all(b < self.total or b in self.lent - self.leaving for b in part)
            self.rows[model][row] = Row(dict(enumerate(part)))
            used.update(part)
