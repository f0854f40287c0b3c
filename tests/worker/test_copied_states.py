"""A prompt that begins behind a copy of another's state, by every step: the tokens and logits of one that is
computed from its first token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.direct_runner import GREEDY, DirectRunner, int32
from support.logits import continuation_logits
from support.tiny_models import qwen3_5, words

from muxd.kernels import native as kernels
from muxd.messages import Chunk, Prefill

WAYS: dict[str, dict[str, Any]] = {
    "torch": {"native": False},
    "native": {"native": True},
    "paged": {"paged": True, "native": False},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("model")
    return folder, qwen3_5(folder)


class Copies(DirectRunner):
    """Chunks that copy states."""

    def rows_of(self, count: int) -> list[int]:
        return [self._free.pop() for _ in range(count)]

    def run(self, made: list[Chunk], fresh: list[int]) -> list[int]:
        return self.runner.prefill(Prefill(next(self._batch), 100, self._new(fresh), made, [])).tokens


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [3, 5])
def test_it_goes_on_where_the_other_was(
    pair: tuple[Path, Any], way: str, rows: int, few_graphs: None
) -> None:
    """``rows``: before the copy; of the 40 tokens of the first all but the last one may be."""
    if way == "native" and (why := kernels.missing()):
        pytest.skip(why)
    folder, reference = pair
    direct = Copies(folder, block_bytes=4096, **WAYS[way])
    size = direct.tokens
    first, mark = words(5 * size), rows * size
    own, state, copy = (direct.rows_of(n) for n in (6, direct._state_rows, direct._state_rows))
    chunk = Chunk(1, 0, int32(first), int32(own), True, GREEDY, len(first),
                  state=int32(state), copy=int32(copy), mark=mark)  # fmt: skip
    other = Chunk(9, 0, int32(words(7)), int32(beside := direct.rows_of(1)), True, GREEDY, 7,
                  state=int32(more := direct.rows_of(direct._state_rows)))  # fmt: skip
    tokens = direct.run([chunk, other], [*own, *state, *copy, *beside, *more])
    for i, prompt in enumerate((first, words(7))):
        wanted = continuation_logits(reference, prompt, tokens[i : i + 1])
        torch.testing.assert_close(direct.logits[-1][i].float(), wanted[0], atol=1e-4, rtol=1e-4)
    second = first[:mark] + words(11, 3)
    behind, mine = direct.rows_of(4), direct.rows_of(direct._state_rows)
    again = Chunk(
        2, mark, int32(second[mark:]), int32([*own[:rows], *behind]), True, GREEDY, len(second), True,
        int32(first[:mark]), state=int32(mine), origin=int32(copy),
    )  # fmt: skip
    found = direct.run([again], [*behind, *mine])
    direct._rows[2], direct._lengths[2] = [*own[:rows], *behind], len(second)
    for _ in range(6):
        found += direct.decode([2])
    wanted = continuation_logits(reference, second, found)
    assert found == wanted.argmax(-1).tolist()
    torch.testing.assert_close(direct.logits[-1][0].float(), wanted[-1], atol=1e-4, rtol=1e-4)


def test_a_place_that_is_not_in_the_chunk_is_refused(pair: tuple[Path, Any]) -> None:
    direct = Copies(pair[0], block_bytes=4096, native=False)
    own, state, copy = (direct.rows_of(n) for n in (2, direct._state_rows, direct._state_rows))
    chunk = Chunk(
        1, 0, int32([5, 6]), int32(own), True, GREEDY, 2, state=int32(state), copy=int32(copy), mark=3
    )
    with pytest.raises(ValueError, match="sequence 1: no state after 3 tokens"):
        direct.run([chunk], [*own, *state, *copy])
