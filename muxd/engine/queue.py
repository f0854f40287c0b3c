"""One model's queue: whose prompt is computed next, in weighted fair order between keys. Pure.

Virtual token counters (Sheng et al., OSDI 2024): every key counts the tokens it was served, of prompts and
answers, divided by its weight, and the waiting key that has had least goes next, within a key by arrival. A
key that comes back is lifted to where the others are: nobody saves up. The bound is in ``design.md``.
"""

from bisect import bisect_right
from collections.abc import Iterator

from muxd.engine.request import Request
from muxd.engine.sequence import Sequence

_LATELY = 64  # times so many admissions of one key in a row, and it is alone


class TokenCounter:
    """What requests of one key have had of the model, and those that have had nothing yet, by arrival.

    Tokens are whole numbers since the last change of ``_base``: many at once count as one by one.
    """

    __slots__ = ("_base", "places", "tokens", "waiting", "weight")

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        self.weight = 1.0
        self.places = 0  # sequences that hold rows
        self.tokens = 0
        self._base = 0.0

    @property
    def level(self) -> float:
        return self._base + self.tokens / self.weight

    def lift(self, least: float, weight: float) -> None:
        """To ``least`` at least; what is served from now on counts by ``weight``."""
        self._base, self.tokens, self.weight = max(least, self.level), 0, weight


class Queue:
    """Who has been admitted once (cut prompts, preempted ones, suspects) goes before all others: it is paid
    for."""

    def __init__(self) -> None:
        self._begun: list[Sequence] = []  # suspects first, then by arrival
        self._counters: dict[str, TokenCounter] = {}  # as many as keys have names
        self._waiting: dict[str, TokenCounter] = {}  # of these, who has somebody waiting
        self._only: TokenCounter | None = None  # waiting alone: every decision asks for heads
        self._level = 0.0  # of the counter from which somebody was taken last
        self._fresh = 0  # sequences that wait at counters
        self._last = ""  # the key that was admitted last
        self._alone = 0  # how many of it in a row

    def __len__(self) -> int:
        return len(self._begun) + self._fresh

    def __iter__(self) -> Iterator[Sequence]:
        """All, in no order."""
        yield from self._begun
        for counter in self._waiting.values():
            yield from counter.waiting

    @property
    def head(self) -> Sequence:
        """Who is next. Raises IndexError where nobody is."""
        if self._begun:
            return self._begun[0]
        if self._only is not None:
            return self._only.waiting[0]
        if not self._waiting:
            raise IndexError("the queue is empty")
        return min(self._waiting.values(), key=_turn).waiting[0]

    def in_order(self) -> Iterator[Sequence]:
        """All, as they would be admitted now. Whoever was given may be admitted before the next is taken."""
        yield from list(self._begun)
        at = dict.fromkeys(self._waiting.values(), 0)
        expected = dict.fromkeys(at, 0.0)  # what those who were given, and not admitted, will cost
        while at:
            counter = min(at, key=lambda one: (one.level + expected[one], *_age(one.waiting[at[one]])))
            place = at[counter]
            sequence = counter.waiting[place]
            yield sequence
            if place < len(counter.waiting) and counter.waiting[place] is sequence:
                at[counter] = place = place + 1
                expected[counter] += sequence.remaining / counter.weight
            if place >= len(counter.waiting):
                del at[counter]

    def add(self, sequence: Sequence) -> None:
        """It arrives, from a client or from another unit."""
        request = sequence.request
        counter = self._counters.setdefault(request.key, TokenCounter())
        if not counter.waiting:
            counter.lift(self._level, request.weight)
        elif request.weight != counter.weight:
            counter.lift(counter.level, request.weight)
        self._waiting[request.key] = counter
        self._only = counter if len(self._waiting) == 1 else None
        counter.waiting.insert(bisect_right(counter.waiting, _arrival(sequence), key=_arrival), sequence)
        self._fresh += 1

    def put_back(self, sequence: Sequence) -> None:
        """It had begun, and has lost its rows."""
        self._begun.insert(bisect_right(self._begun, _place(sequence), key=_place), sequence)

    def admitted(self, sequence: Sequence) -> None:
        """It has its rows, and its prompt is to be computed: what is left of that counts from now on."""
        if sequence.counter is not None:
            sequence.counter.places += 1
            return
        counter = self._counters[sequence.request.key]
        self._level = max(self._level, counter.level)
        self._take(sequence)
        counter.tokens += sequence.remaining
        counter.places += 1
        key = sequence.request.key
        self._last, self._alone = key, self._alone + 1 if key == self._last else 1
        sequence.counter = counter
        self.put_back(sequence)

    def released(self, sequence: Sequence) -> None:
        """It holds rows no more."""
        assert sequence.counter is not None
        sequence.counter.places -= 1

    def crowds(self, sequence: Sequence, places: int) -> bool:
        """Whether it is of a key that has so many places, where another key has come lately."""
        if len(self._counters) < 2 or self._alone >= _LATELY * places:
            return False
        counter = self._counters.get(sequence.request.key)
        return counter is not None and counter.places >= places

    def remove(self, sequence: Sequence) -> None:
        """Raises ValueError where it does not wait."""
        if sequence.counter is not None:
            self._begun.remove(sequence)
        else:
            self._take(sequence)

    def displaced(self, by: Request) -> Sequence | None:
        """Who makes room in a full queue: the youngest of the key that has most waiting, by weight; None
        where ``by`` would be of that key, or of one with as much."""
        if not self._waiting:
            return None
        longest = max(self._waiting.values(), key=lambda one: len(one.waiting) / one.weight)
        own = self._waiting.get(by.key)
        mine = ((len(own.waiting) if own is not None else 0) + 1) / by.weight
        return longest.waiting[-1] if mine < len(longest.waiting) / longest.weight else None

    def _take(self, sequence: Sequence) -> None:
        key = sequence.request.key
        counter = self._counters[key]
        counter.waiting.remove(sequence)
        self._fresh -= 1
        if not counter.waiting:
            del self._waiting[key]
            self._only = next(iter(self._waiting.values())) if len(self._waiting) == 1 else None


def _turn(counter: TokenCounter) -> tuple[float, float, int]:
    return counter.level, *_age(counter.waiting[0])


def _age(sequence: Sequence) -> tuple[float, int]:
    return sequence.arrived, sequence.id


def _arrival(sequence: Sequence) -> float:
    return sequence.arrived


def _place(sequence: Sequence) -> tuple[bool, float]:
    return not sequence.suspect, sequence.arrived
