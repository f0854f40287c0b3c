"""The names of rows: equal exactly when everything up to the row's end is equal."""

import struct
import time
from array import array
from collections.abc import Callable
from hashlib import blake2b

import hypothesis.strategies as st
import pytest
from hypothesis import given

from muxd.pool.prefix import Chain

TOKENS = st.lists(st.integers(0, 3), max_size=40)


@given(first=TOKENS, second=TOKENS, size=st.integers(1, 5))
def test_keys_are_equal_exactly_as_far_as_the_tokens_are(
    first: list[int], second: list[int], size: int
) -> None:
    a, b = Chain("m", size).keys(first, len(first)), Chain("m", size).keys(second, len(second))
    assert (len(a), len(b)) == (len(first) // size, len(second) // size)
    for row, (one, other) in enumerate(zip(a, b, strict=False)):
        end = (row + 1) * size
        assert (one == other) == (first[:end] == second[:end])


@given(tokens=TOKENS, size=st.integers(1, 5), data=st.data())
def test_a_chain_that_grows_names_rows_as_one_hashed_at_once(
    tokens: list[int], size: int, data: st.DataObject
) -> None:
    """Token by token, with ends in between, looking back at times: each row is hashed once."""
    chain, whole = Chain("m", size), Chain("m", size).keys(tokens, len(tokens))
    for end in range(len(tokens) + 1):
        count = data.draw(st.integers(-1, end + 3))
        assert chain.keys(tokens[:end], count) == whole[: max(0, min(count, end)) // size]
    assert chain.keys(tokens, len(tokens)) == whole


@pytest.mark.parametrize(("length", "rows"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2)])
def test_a_match_leaves_the_last_prompt_token_to_compute(length: int, rows: int) -> None:
    assert len(Chain("m", 8).match([7] * length)) == rows


def test_equal_tokens_of_two_models_are_different_rows() -> None:
    assert Chain("a", 4).keys([1] * 8, 8)[0] != Chain("b", 4).keys([1] * 8, 8)[0]


def test_a_key_is_the_hash_of_the_key_before_and_the_rows_tokens() -> None:
    key = blake2b(b"m", digest_size=16).digest()
    for tokens, found in zip([(1, 2), (70000, 3)], Chain("m", 2).keys([1, 2, 70000, 3, 9], 5), strict=True):
        key = blake2b(key + struct.pack("<2i", *tokens), digest_size=16).digest()
        assert found == key


def best(work: Callable[[], object]) -> float:
    """Seconds of the processor: others on the machine only ever add to them."""
    found = []
    for _ in range(20):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return min(found)


@pytest.mark.parametrize("row_tokens", [8, 16, 32])
def test_naming_4096_tokens_takes_little_more_than_to_hash_them(row_tokens: int) -> None:
    """A fifth of a millisecond or so, wherever a loop that does nothing else takes that."""
    tokens = list(range(4096))

    def hashed() -> None:
        key = b""
        for start in range(0, len(tokens), row_tokens):
            row = array("i", tokens[start : start + row_tokens])
            key = blake2b(key + row.tobytes(), digest_size=16).digest()

    assert best(lambda: Chain("m", row_tokens).match(tokens)) < 3 * best(hashed)
