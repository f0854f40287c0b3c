"""Tokens that a sequence may not sample, or should: logit biases, lists of tokens, words, grammars.

The only place where those rules are. A sequence that has any carries a ``Bound``; the sampler of each step
asks it for a mask of the vocabulary, given what was generated so far. It can be made anew at any time from
those tokens: so preemption, another worker and a batch of other sequences change nothing.
"""

import ctypes
import logging
from collections import OrderedDict
from collections.abc import Sequence as Items
from contextlib import suppress
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from muxd.messages import Constraint, Sampling
from muxd.text.constraint import LIMITS, grammar_of
from muxd.text.tokenizer import Tokenizer

Bits = NDArray[np.int32]  # [ceil(vocab / 32)], the bit of a token that may come is set
_COMPILED = 16  # grammars kept: a conversation, or the choices of a request, ask for the same one again

_log = logging.getLogger("muxd.worker")


class Bound:
    """One sequence's. ``bias``: ids and what is added to their logits."""

    def __init__(self, sampling: Sampling, size: int, grammar: "Grammar | None"):
        self.size = size
        self.bias = _split(sampling.bias)
        self._grammar = grammar
        self._words = [word for word in sampling.bad_words if word]
        self._allowed: Bits | None = None
        if sampling.allowed:
            self._allowed = bits(size)
            set_bits(self._allowed, sampling.allowed)
        self._masks = bool(grammar or self._words or sampling.allowed)

    def mask(self, generated: Items[int]) -> Bits | None:
        """After these tokens, the whole answer so far. None: any token may come."""
        if not self._masks:
            return None
        found = bits(self.size, full=True) if self._allowed is None else self._allowed.copy()
        if self._grammar is not None:
            found &= self._grammar.mask(generated)
        for word in self._words:
            before = len(word) - 1
            if not before or tuple(generated[-before:]) == word[:-1]:
                clear_bit(found, word[-1])
        return found


class Grammar:
    """One sequence's way through a constraint."""

    def __init__(self, matcher: LLMatcher, constraint: Constraint, own_ends: Items[int], size: int):
        self._matcher, self._ends, self._own_ends, self._size = matcher, constraint.ends, own_ends, size
        self._taken = 0  # generated tokens it has been told
        self._lost = False

    def mask(self, generated: Items[int]) -> Bits:
        """No bit is set where the grammar cannot go on: too costly, or no token for what must come."""
        found = bits(self._size)
        matcher = self._matcher
        matcher.consume_tokens(list(generated[self._taken :]))
        self._taken = len(generated)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(found.ctypes.data, found.nbytes)
        if matcher.is_error():
            self._tell()
            return bits(self._size)
        for token in self._own_ends:
            clear_bit(found, token)
        if matcher.is_accepting():
            set_bits(found, self._ends)
        return found

    def _tell(self) -> None:
        if not self._lost:
            self._lost = True
            # Its message may quote the grammar, or the answer.
            _log.warning("a constraint ends after %d tokens: %s", self._taken, self._matcher.stop_reason())


class Bounds:
    """Those of one model's sequences. Its tokenizer is read when the first grammar comes: that takes two
    seconds for a quarter of a million tokens, and memory, for which others need not pay."""

    def __init__(self, folder: Path, size: int):
        """``size``: of a row of logits."""
        self._folder, self._size = folder, size
        self._words: LLTokenizer | None = None
        self._own_ends: list[int] = []
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()

    def of(self, sampling: Sampling) -> Bound | None:
        """None where there is nothing to keep."""
        if not sampling.bounded:
            return None
        grammar = None if sampling.constraint is None else self._open(sampling.constraint)
        return Bound(sampling, self._size, grammar)

    def _open(self, constraint: Constraint) -> Grammar:
        words = self._words or self._read()
        key = (constraint.kind, constraint.text)
        found = self._compiled.pop(key, None) or _compile(words, constraint)
        self._compiled[key] = found
        if len(self._compiled) > _COMPILED:
            self._compiled.popitem(last=False)
        return Grammar(found.deep_copy(), constraint, self._own_ends, self._size)

    def _read(self) -> LLTokenizer:
        words = _Words(Tokenizer.load(self._folder), self._size)
        with suppress(AttributeError):  # of glibc; a quarter of a million tokens leave 250 MB otherwise
            ctypes.CDLL(None).malloc_trim(0)
        self._own_ends = [words.eos_token_id]
        self._words = LLTokenizer(words, n_vocab=self._size, eos_token=self._own_ends)  # type: ignore[arg-type]
        return self._words


def _compile(words: LLTokenizer, constraint: Constraint) -> LLMatcher:
    """In error, so that its mask is empty, where it cannot be read: how deep brackets may nest depends on the
    stack below, and the door's, which has read it, is not as deep as a worker's."""
    try:
        text = grammar_of(constraint)
    except (ValueError, RecursionError):
        text = ""
    return LLMatcher(words, text, log_level=0, limits=LIMITS)


class _Words:
    """A vocabulary as the library reads it (``llguidance.TokenizerWrapper``). Ids of the model that its
    tokenizer does not know stand for nothing, and special ones never for text."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, size: int):
        self.eos_token_id = min((token for token in tokenizer.eos if token < size), default=0)
        self.bos_token_id = tokenizer.bos
        self.tokens = [tokenizer.token_bytes(token) for token in range(size)]
        self.special_token_ids = [token for token in tokenizer.special_ids if token < size]

    def __call__(self, text: str) -> list[int]:
        """For forced text, which nobody asks for: every token is the model's own choice."""
        raise NotImplementedError


def bits(size: int, *, full: bool = False) -> Bits:
    return np.full(-(-size // 32), -1 if full else 0, dtype=np.int32)


def set_bits(found: Bits, tokens: Items[int]) -> None:
    ids = np.asarray(tokens, dtype=np.int64)
    np.bitwise_or.at(found.view(np.uint32), ids >> 5, (1 << (ids & 31)).astype(np.uint32))


def clear_bit(found: Bits, token: int) -> None:
    found.view(np.uint32)[token >> 5] &= np.uint32(~(1 << (token & 31)) & 0xFFFFFFFF)


def ruled_out(found: Bits, size: int) -> NDArray[np.bool_]:
    """[size], true where the bit is not set."""
    set_ones = np.unpackbits(found.view(np.uint8), count=size, bitorder="little")
    return np.equal(set_ones, 0)


def _split(bias: Items[tuple[int, float]]) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    if not bias:
        return None
    ids, values = zip(*bias, strict=True)
    return np.array(ids, dtype=np.int64), np.array(values, dtype=np.float32)
