"""The name of a computed row: a hash of everything from the sequence's first token to the row's last.

Pure. The engine keeps one ``Chain`` a sequence; the ledger knows rows by these keys. What a token's K and V
are depends on the model, on its adapter and on all tokens before it, so equal keys mean equal rows.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

_BYTES = 16  # 2^64 rows before a collision is likely, and blake2b gives nobody a way to make one


class Chain:
    """Keys of one sequence's full rows: key i = H(key i-1, tokens of row i), key -1 = H(name), that of the
    model or of its adapter.

    Remembers how far it got: tokens already hashed are never looked at again, so a sequence only appends.
    """

    __slots__ = ("_keys", "_root", "_row_tokens")

    def __init__(self, name: str, row_tokens: int):
        self._root = blake2b(name.encode(), digest_size=_BYTES).digest()
        self._row_tokens = row_tokens
        self._keys: list[bytes] = []

    def match(self, tokens: Sequence[int]) -> list[bytes]:
        """Keys that a prompt may find: rows fully inside ``tokens[:-1]``, for the last token's logits are
        wanted and so it has to be computed."""
        return self.keys(tokens, len(tokens) - 1)

    def keys(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Keys of the rows fully inside ``tokens[:count]``; ``tokens`` is the sequence from its beginning."""
        rows = max(0, min(count, len(tokens))) // self._row_tokens
        if rows > len(self._keys):
            self._extend(tokens, rows)
        return self._keys[:rows]

    def state_key(self, rows: int, part: int) -> bytes:
        """Name of a row, the ``part``-th, of a copy of the state after the first ``rows``, whose keys are
        known."""
        return blake2b(self._keys[rows - 1] + b"state %d" % part, digest_size=_BYTES).digest()

    def state_keys(self, rows: int, count: int) -> list[bytes]:
        """Of all its ``count`` rows."""
        return [self.state_key(rows, part) for part in range(count)]

    def _extend(self, tokens: Sequence[int], rows: int) -> None:
        done, size = len(self._keys), 4 * self._row_tokens
        fresh = tokens[done * self._row_tokens : rows * self._row_tokens]
        data = np.asarray(fresh, dtype="<i4").tobytes()
        key = self._keys[-1] if done else self._root
        for at in range(0, len(data), size):
            key = blake2b(key + data[at : at + size], digest_size=_BYTES).digest()
            self._keys.append(key)
