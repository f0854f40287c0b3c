"""What one token adds to a text, worked out once per token and kept.

``tokenizers`` decodes whole lists. A stream needs the parts, and its ``DecodeStream`` raises or differs on
byte sequences that are not UTF-8, which a sampling model does emit. The decoders that our architectures use
are simple enough to take apart: the rules below are those of the library, and tests compare the two.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

# The printable stand-ins of byte-level BPE: bytes that print are themselves, the others follow from U+0100.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {
    chr(0x100 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}


class Kind(Enum):
    """How the pieces make a text."""

    BYTES = "bytes"  # all pieces are bytes of one UTF-8 text
    FALLBACK = "fallback"  # text, with runs of single bytes for what the vocabulary lacks
    SPACED = "spaced"  # no decoder: tokens with spaces between
    WORDS = "words"  # WordPiece, of models that only read: spaces between but where a word goes on


class Pieces:
    """Table from token id to ``str`` (text), ``bytes`` (UTF-8, perhaps a part of a character) or None (adds
    nothing). Shared by all streams of a model. Raises ValueError for a decoder it cannot take apart."""

    def __init__(self, decoder: str, special: Mapping[str, int], name: Callable[[int], str | None]):
        """``decoder``: as the library writes it, JSON; "": none. ``special``: those tokens by their text.
        ``name``: of any token, None where there is no such one."""
        self.decoder, self.special = decoder, dict(special)
        self._name = name
        self._replacements: list[tuple[str, str]] = []
        self.joined = ""  # with which the tokens of ``WORDS`` begin that go on with a word
        self.strip_left = 0  # leading spaces taken off the whole text
        self.kind = self._take_apart(json.loads(decoder)) if decoder else Kind.SPACED
        self._known: dict[int, str | bytes | None] = {}

    @property
    def growth(self) -> float:
        """How many times the bytes of its name a token's text may have."""
        sizes = [(len(old.encode()), len(new.encode())) for old, new in self._replacements]
        return math.prod(max(1.0, new / old) if old else math.inf for old, new in sizes)

    def __getitem__(self, token: int) -> str | bytes | None:
        try:
            return self._known[token]
        except KeyError:
            return self._known.setdefault(token, self._resolve(token, skip_special=True))

    def specials(self, texts: Iterable[str]) -> dict[int, str]:
        """Those of the ``texts`` that are special tokens, by id."""
        return {self.special[text]: text for text in texts if text in self.special}

    def start_after(self, ids: Iterable[int]) -> bool:
        """Whether a text that goes on from ``ids`` is still at its start: they add nothing to it."""
        return all(not self[token] for token in ids)

    def alone(self, token: int) -> bytes:
        """The token by itself as bytes, special ones by their name; empty if outside the vocabulary."""
        piece = self._resolve(token, skip_special=False)
        return piece.encode() if isinstance(piece, str) else piece or b""

    def _take_apart(self, decoder: dict[str, Any]) -> Kind:
        if decoder["type"] == "ByteLevel":
            return Kind.BYTES
        if decoder["type"] == "WordPiece":
            self.joined = decoder["prefix"]
            return Kind.WORDS
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        order = [step["type"] for step in steps]
        known = ["Replace", "ByteFallback", "Fuse", "Strip"]
        fits = order == [name for name in known if name in order] and {"ByteFallback", "Fuse"} <= set(order)
        for step in steps if fits else []:
            if step["type"] == "Replace":
                fits = fits and "String" in step["pattern"]
                self._replacements.append((step["pattern"].get("String", ""), step["content"]))
            if step["type"] == "Strip":
                fits = fits and step["content"] == " " and step["stop"] == 0
                self.strip_left = step["start"]
        if not fits:
            raise ValueError(
                f"decoder {' + '.join(order)} is not supported; known are ByteLevel, and Replace + "
                "ByteFallback + Fuse (+ Strip)"
            )
        return Kind.FALLBACK

    def _resolve(self, token: int, *, skip_special: bool) -> str | bytes | None:
        text = self._name(token)
        if text is None or (skip_special and text in self.special):
            return None
        if self.kind is Kind.BYTES:
            try:
                return bytes(_BYTE_OF[character] for character in text)
            except KeyError:  # an added token, written as it is
                return text.encode()
        if self.kind is Kind.WORDS:
            return text.removeprefix(self.joined) if text.startswith(self.joined) else f" {text}"
        for old, new in self._replacements:
            text = text.replace(old, new)
        if self.kind is Kind.FALLBACK and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                return bytes([int(text[3:5], 16)])
            except ValueError:
                return text
        return text
