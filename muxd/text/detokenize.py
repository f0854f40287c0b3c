"""Tokens to text while they arrive: only text that later tokens cannot change leaves here.

One ``Detokenizer`` per stream, called for every token of every stream in the daemon, so a push costs a table
look-up and a join. Over a whole stream its output is what the ids add to ``Tokenizer.decode`` of those before
them.
"""

import codecs
from collections.abc import Collection, Iterable
from typing import Protocol

from muxd.text.pieces import Kind, Pieces

_UTF8 = codecs.getincrementaldecoder("utf-8")


class _Joiner(Protocol):
    def push(self, ids: Iterable[int]) -> str: ...

    def finish(self) -> str: ...


class Detokenizer:
    """Incremental decoding of one stream; special tokens are left out but for those to be ``shown``.

    ``start``: no text comes before these tokens. Decoders that put a space before every word take it off the
    first word of a text, and the answer to a prompt is not the first.
    """

    def __init__(self, pieces: Pieces, *, start: bool = False, shown: Collection[str] = ()):
        self._shown = pieces.specials(shown)
        self._joiner: _Joiner
        if pieces.kind is Kind.BYTES:
            self._joiner = _Bytes(pieces)
        elif pieces.kind is Kind.FALLBACK:
            self._joiner = _Fallback(pieces, pieces.strip_left if start else 0)
        else:
            self._joiner = _Spaced(pieces, "" if start else " ")

    def push(self, ids: Iterable[int]) -> str:
        """The text that becomes final with these tokens, possibly empty."""
        if not self._shown:
            return self._joiner.push(ids)
        return "".join(
            self._joiner.finish() + self._shown[token]
            if token in self._shown
            else self._joiner.push((token,))
            for token in ids
        )

    def finish(self) -> str:
        """What was held back; after this, push must not be called."""
        return self._joiner.finish()


class _Bytes:
    """Byte-level: a character is final when its last byte is there; broken sequences become U+FFFD."""

    def __init__(self, pieces: Pieces):
        self._pieces = pieces
        self._utf8 = _UTF8("replace")

    def push(self, ids: Iterable[int]) -> str:
        pieces = self._pieces
        parts = [piece for token in ids if isinstance(piece := pieces[token], bytes)]
        return self._utf8.decode(b"".join(parts))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Fallback:
    """Text with runs of byte tokens. A run is judged as a whole: valid UTF-8, or U+FFFD for each byte. So it
    is final only when a token that is no byte ends it."""

    def __init__(self, pieces: Pieces, strip_left: int):
        self._pieces = pieces
        self._run = bytearray()
        self._strip_left = strip_left

    def push(self, ids: Iterable[int]) -> str:
        out: list[str] = []
        for token in ids:
            piece = self._pieces[token]
            if isinstance(piece, bytes):
                self._run += piece
            elif piece is not None:
                if self._run:
                    out.append(self._end_run())
                out.append(piece)
        text = "".join(out)
        return self._strip(text) if self._strip_left else text

    def finish(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = "\ufffd" * len(self._run)
        self._run.clear()
        return text

    def _strip(self, text: str) -> str:
        """SentencePiece's space before the first word, once per text."""
        while text and self._strip_left:
            if text[0] != " ":
                self._strip_left = 0
                break
            self._strip_left -= 1
            text = text[1:]
        return text


class _Spaced:
    """No decoder: tokens with spaces between."""

    def __init__(self, pieces: Pieces, separator: str):
        self._pieces = pieces
        self._separator = separator

    def push(self, ids: Iterable[int]) -> str:
        out = ""
        for token in ids:
            piece = self._pieces[token]
            if isinstance(piece, str):
                out += self._separator + piece
                self._separator = " "
        return out

    def finish(self) -> str:
        return ""
