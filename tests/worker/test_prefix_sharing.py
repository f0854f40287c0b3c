"""Rows computed by one sequence serve others: the same tokens and logits as computed from scratch."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.direct_runner import GREEDY, DirectRunner, int32
from support.ledger_runner import LedgerRunner, Served
from support.logits import greedy_choices
from support.tiny_models import cohere2, gemma3, gemma4, llama, mistral, qwen2, qwen3
from transformers import PreTrainedModel

from muxd.messages import Chunk, NewRows, Prefill, Sampling

Make = Callable[..., PreTrainedModel]
SHAPES: dict[str, tuple[Make, dict[str, Any]]] = {
    "llama": (llama, {}),
    "llama head_dim not dividing a block": (llama, {"head_dim": 24, "num_key_value_heads": 3}),
    "qwen2 late layers slide": (
        qwen2,
        {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 2},
    ),
    "qwen3": (qwen3, {}),
    "mistral": (mistral, {}),
    "cohere2, layers without rope": (cohere2, {}),
    "gemma3": (gemma3, {}),  # 2 tokens a row, window 21
    "gemma4": (gemma4, {}),  # heads of two blocks, layers that read others' rows
    "gemma3 window inside a row": (gemma3, {"head_dim": 32, "num_key_value_heads": 2, "sliding_window": 7}),
}
BLOCKS = 6000


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    make, changes = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, **changes)


def words(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=length)


def same(found: Served, wanted: Served, steps: int) -> None:
    """Greedy tokens equal, logits within 1e-5."""
    assert found.answer[:steps] == wanted.answer[:steps]
    logits = torch.stack(found.logits[:steps]), torch.stack(wanted.logits[:steps])
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def scratch(folder: Path, tokens: list[int], steps: int, **options: Any) -> Served:
    """The same sequence alone in a pool of its own, nothing shared."""
    alone = LedgerRunner({"m": folder}, BLOCKS)
    it = alone.start("m", tokens, cache=False, **options)
    while len(it.answer) < steps:
        alone.step(it)
    assert it.shared == 0
    return it


@pytest.mark.parametrize("chunk", [1000, 9])
@pytest.mark.parametrize("ended", [True, False])
def test_a_shared_prefix_changes_no_token_and_no_logit(
    model: tuple[Path, Any], ended: bool, chunk: int
) -> None:
    """The other sequence has ended (its rows are cached) or still runs (they are held by both)."""
    folder, _ = model
    host = LedgerRunner({"m": folder}, BLOCKS)
    prefix = words(64, seed=1)
    other = host.start("m", prefix + words(9, seed=2))
    for _ in range(3):
        host.step(other)
    if ended:
        host.finish(other)
    tokens = prefix + words(21, seed=3)
    found = host.start("m", tokens, chunk=chunk)
    assert found.shared == 64 // host.row_tokens["m"]
    assert found.rows[: found.shared] == other.rows[: found.shared]
    for _ in range(24):
        host.step(found)
    same(found, scratch(folder, tokens, 25), 25)
    if not ended:  # and the one that was there first has lost nothing
        for _ in range(20):
            host.step(other)
        same(other, scratch(folder, other.tokens[: other.prompt_tokens], 24), 24)


def test_a_whole_prompt_in_the_cache_still_computes_its_last_token(model: tuple[Path, Any]) -> None:
    folder, reference = model
    host = LedgerRunner({"m": folder}, BLOCKS)
    tokens = words(4 * host.row_tokens["m"], seed=4)
    host.finish(host.start("m", tokens))
    again = host.start("m", tokens)
    assert again.shared == 3
    assert again.answer == greedy_choices(reference, tokens, again.answer)


def test_an_answer_is_a_prefix_too(model: tuple[Path, Any]) -> None:
    """The next turn of a conversation starts with the last one's answer; so does a preempted sequence."""
    folder, _ = model
    host = LedgerRunner({"m": folder}, BLOCKS)
    sampling = Sampling(temperature=0.9, seed=5, repetition_penalty=1.3, presence_penalty=0.4, min_tokens=60)
    first = host.start("m", words(30, seed=6), sampling=sampling)
    for _ in range(40):
        host.step(first)
    host.finish(first)  # preempted
    rest = host.start("m", first.tokens, prompt_tokens=30, sampling=sampling)
    assert rest.shared == (len(first.tokens) - 1) // host.row_tokens["m"]
    for _ in range(10):
        host.step(rest)
    whole = scratch(folder, words(30, seed=6), 52, sampling=sampling)
    assert rest.answer == whole.answer
    same_logits = torch.stack(rest.logits), torch.stack(whole.logits[41:])
    torch.testing.assert_close(*same_logits, atol=1e-5, rtol=0)


def test_two_models_reclaim_each_others_cached_rows_and_stay_right(tmp_path: Path) -> None:
    """A pool far smaller than what is cached: row ids and blocks come back under other names all the time."""
    references = {"llama": llama(tmp_path / "llama"), "gemma": gemma3(tmp_path / "gemma")}
    host = LedgerRunner({name: tmp_path / name for name in references}, blocks=420)
    draw = random.Random(7)
    shared, reclaimed, running = 0, 0, []
    for turn in range(60):
        model = draw.choice(sorted(references))
        before = sum(use.cached_rows for use in host.ledger.usage().values())
        tokens = words(draw.choice([20, 40, 60]), seed=draw.choice([1, 2, 3])) + words(5, seed=turn)
        it = host.start(model, tokens, chunk=draw.choice([7, 1000]))
        revived = it.shared  # at most: those that others hold were not cached
        reclaimed += before - revived > sum(use.cached_rows for use in host.ledger.usage().values())
        shared += it.shared
        running.append(it)
        for _ in range(6):
            host.step(draw.choice(running))
        if len(running) == 3:
            done = running.pop(draw.randrange(3))
            assert done.answer == greedy_choices(references[done.model], tokens_of(done), done.answer)
            host.finish(done)
    assert shared > 100
    assert reclaimed > 10


def tokens_of(it: Served) -> list[int]:
    return it.tokens[: it.prompt_tokens]


@pytest.mark.parametrize(("start", "known"), [(16, 15), (16, 0), (15, 15)])
def test_a_first_chunk_inside_a_row_or_without_its_tokens_is_refused(
    tmp_path: Path, start: int, known: int
) -> None:
    llama(tmp_path)
    direct = DirectRunner(tmp_path)  # 16 tokens a row
    direct.prefill([(1, 0, [5] * 20, True)])
    rows = [*direct._rows[1][:1], *direct._grow(2, 16)]
    chunk = Chunk(2, start, int32([6]), int32(rows), True, GREEDY, start + 1, True, int32([5] * known))
    with pytest.raises(ValueError, match=rf"sequence 2: begins at {start} with {known} known tokens; .* 16"):
        direct.runner.prefill(Prefill(9, 100, direct._new(rows), [chunk], []))


def test_a_later_chunk_of_a_sequence_nobody_began_is_refused(tmp_path: Path) -> None:
    llama(tmp_path)
    direct = DirectRunner(tmp_path)
    chunk = Chunk(3, 16, int32([6]), b"", True, GREEDY, 17)
    with pytest.raises(KeyError):
        direct.runner.prefill(Prefill(1, 100, NewRows(), [chunk], []))
