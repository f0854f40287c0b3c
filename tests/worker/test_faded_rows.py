"""Windowed blocks that were taken from under running sequences: no step reads them, whoever has them by now.

What comes free by fading is NaN at once (``support.ledger_runner``), so whatever is read of it shows.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ledger_runner import LedgerRunner, Served
from support.logits import greedy_choices
from support.tiny_models import gemma3, gpt_oss, mistral
from transformers import PreTrainedModel

from muxd.kernels import native as kernels
from muxd.worker import cuda_step

Make = Callable[..., PreTrainedModel]
SHAPES: dict[str, tuple[Make, dict[str, Any]]] = {
    "gemma3": (gemma3, {}),  # 2 tokens a row, window 21
    "gemma3, window inside a row": (
        gemma3, {"head_dim": 32, "num_key_value_heads": 2, "sliding_window": 7}
    ),
    "gemma3, window of tiles": (gemma3, {"head_dim": 64, "sliding_window": 70}),
    "gpt-oss": (gpt_oss, {}),
    "mistral": (mistral, {}),  # nothing of a passed row is left
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "native": {"native": True},
    "torch": {"native": False},
    "paged": {"paged": True, "native": False},
}


@pytest.fixture(scope="module", autouse=True)
def without_graphs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_step, "buckets_for", lambda most: (1,))
        yield


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    make, changes = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, **changes)


@pytest.fixture(params=WAYS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "native" and (why := kernels.missing()):
        pytest.skip(why)
    return WAYS[request.param]


def words(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=length)


def right(it: Served, reference: Any) -> None:
    assert it.answer == greedy_choices(reference, it.tokens[: it.prompt_tokens], it.answer)


@pytest.mark.parametrize("chunk", [1000, 9])
def test_sequences_go_on_while_others_have_what_they_have_passed(
    model: tuple[Path, Any], options: dict[str, Any], chunk: int
) -> None:
    """Without names what is passed is free, and the next sequence writes there."""
    folder, reference = model
    host = LedgerRunner({"m": folder}, 1600, **options)
    running = [host.start("m", words(n, seed=n), chunk=chunk, named=False) for n in (120, 9, 75)]
    for step in range(40):
        for it in running:
            host.step(it)
        if step == 20:
            running.append(host.start("m", words(90, seed=step), chunk=chunk, named=False))
    host.ledger.audit()
    assert all(it.faded for it in (running[0], running[3]))
    for it in running:
        right(it, reference)
    held = host.ledger.held("m")
    assert held < sum(len(it.rows) for it in running) * host.runners["m"]._spec.blocks_per_row
    for it in running:
        host.finish(it)
    assert host.ledger.free_blocks == 1600


def test_a_prefix_is_found_again_while_its_window_is_there(
    model: tuple[Path, Any], options: dict[str, Any]
) -> None:
    """And once that was taken, a prompt that ends there is computed anew, and one that goes on is not."""
    folder, reference = model
    host = LedgerRunner({"m": folder}, 1600, **options)
    first = host.start("m", words(150, seed=1), chunk=40)
    for _ in range(30):
        host.step(first)
    size = host.row_tokens["m"]
    fork = first.tokens[:100] + words(12, seed=2)
    branch = host.start("m", fork, chunk=9)
    assert branch.shared == 100 // size
    host.step(branch)
    right(branch, reference)
    host.finish(branch)
    rows = host.ledger.available("m")
    everything = host.ledger.take("m", rows)  # takes what may be taken
    assert everything is not None
    host.ledger.release("m", everything.ids)
    host.pool.view(-1, 4096)[everything.blocks.reshape(-1).tolist()] = 0xFF
    hollow = host.start("m", fork[:-1] + words(5, seed=3), chunk=9)
    assert hollow.shared < branch.shared
    longer = host.start("m", first.tokens[:-1] + words(8, seed=4), chunk=9)
    assert longer.shared == (len(first.tokens) - 1) // size
    for it in (hollow, longer, first):
        for _ in range(20):
            host.step(it)
        right(it, reference)
    for it in (hollow, longer, first):
        host.finish(it)


def test_a_pool_of_less_than_all_whole_rows_serves_them_all(
    model: tuple[Path, Any], options: dict[str, Any]
) -> None:
    """Named: what they have passed is taken only as the room is needed, under their feet."""
    folder, reference = model
    roomy = LedgerRunner({"m": folder}, 4000, **options)
    width, size = roomy.runners["m"]._spec.blocks_per_row, roomy.row_tokens["m"]
    windowed = roomy.windowed["m"]
    assert windowed is not None
    long = 240
    rows, seen = long // size + 1, windowed.tokens // size + 2
    least = 3 * (rows * width - max(0, rows - seen) * len(windowed.columns))
    blocks = least + (30 // size + 2) * width  # the first chunks of the last one
    host = LedgerRunner({"m": folder}, blocks, **options)
    running = []
    for seed in range(3):
        it = host.start("m", words(20, seed=seed))
        running.append(it)
        while len(it.tokens) < long - 10:
            host.step(it)
    for _ in range(9):
        for it in running:
            host.step(it)
    assert 3 * (long // size) * width > blocks
    for it in running:
        right(it, reference)
        host.finish(it)
