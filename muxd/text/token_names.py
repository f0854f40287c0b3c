"""What answers need of a tokenizer: the names of its tokens and how they join, as plain bytes.

The tokenizer itself takes hundreds of bytes a token and, while it is made, holds the interpreter's lock for a
second where there are 256,000 of them: all streams of the daemon would wait. So a text process makes it and
sends this, a few bytes a token, which costs the daemon a copy.
"""

import math
from array import array
from weakref import WeakValueDictionary

from msgspec import Struct

from muxd.text.pieces import Pieces


class TokenNames(Struct, frozen=True):
    """``names`` of the tokens 0, 1, ... in UTF-8, one behind the other; ``ends``: where each ends, int32.
    ``missing``: tokens without one. ``key``: equal where all this is, and the tokenizers are."""

    key: bytes
    decoder: str  # JSON; "": none
    special: dict[str, int]  # token by text
    names: bytes
    ends: bytes
    missing: list[int]


def pieces_from(names: TokenNames) -> Pieces:
    """Models whose tokenizers say the same share theirs. Raises ValueError as ``Pieces`` does."""
    if (found := _made.get(names.key)) is None:
        found = Pieces(names.decoder, names.special, _Names(names).of)
        _made[names.key] = found
    return found


def longest(names: TokenNames, pieces: Pieces) -> int:
    """Bytes of text that one token can stand for, at most."""
    ends = array("i", names.ends)
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    best = 0
    for token in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if math.ceil(lengths[token] * pieces.growth) + 1 <= best:  # a word has a space before it
            break
        best = max(best, len(pieces.alone(token)))
    return best


class _Names:
    def __init__(self, names: TokenNames):
        self._names, self._ends = names.names, array("i", names.ends)
        self._missing = frozenset(names.missing)

    def of(self, token: int) -> str | None:
        if not 0 <= token < len(self._ends) or token in self._missing:
            return None
        begin = self._ends[token - 1] if token else 0
        return self._names[begin : self._ends[token]].decode()


_made: WeakValueDictionary[bytes, Pieces] = WeakValueDictionary()
