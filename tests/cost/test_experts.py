"""What a batch reads of a mixture of experts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.cost.analytic import Roofline, decode_work, operations, reading_of
from muxd.cost.experts import touched
from muxd.cost.peaks import CAPTURED
from muxd.cost.shapes import known

EXPERTS = st.integers(1, 500).flatmap(lambda count: st.tuples(st.just(count), st.integers(1, count)))


@given(EXPERTS, st.integers(1, 5000), st.integers(0, 5000))
def test_more_tokens_touch_more_and_never_more_than_all(
    experts: tuple[int, int], tokens: int, more: int
) -> None:
    count, chosen = experts
    assert touched(count, chosen, 1) == pytest.approx(chosen / count)
    assert chosen / count <= touched(count, chosen, tokens) * (1 + 1e-9) <= 1 + 1e-9
    assert touched(count, chosen, tokens) <= touched(count, chosen, tokens + more)


@pytest.mark.parametrize(("count", "chosen", "tokens"), [(8, 2, 3), (128, 8, 16), (32, 4, 1)])
def test_the_mean_of_many_draws(count: int, chosen: int, tokens: int) -> None:
    draw, runs = random.Random(7), 2000
    found = sum(
        len({expert for _ in range(tokens) for expert in draw.sample(range(count), chosen)})
        for _ in range(runs)
    )
    assert found / runs / count == pytest.approx(touched(count, chosen, tokens), rel=0.02)


@pytest.mark.parametrize(
    ("name", "active"), [("qwen3-30b-a3b", 3.35e9), ("mixtral-8x7b", 12.9e9), ("gpt-oss-20b", 4.19e9)]
)
def test_active_and_total_parameters_are_those_that_are_published(name: str, active: float) -> None:
    shape = known(name)
    assert shape.active_parameters == pytest.approx(active, rel=0.01)
    assert shape.touched_parameters(10**6) == pytest.approx(shape.parameters)
    assert shape.weight_bytes() == 2 * shape.parameters
    lookup = shape.vocab * shape.hidden  # of the embedding: nobody multiplies with it
    assert reading_of(shape, 1, "bfloat16").bytes_of(1) == pytest.approx(
        2 * (shape.active_parameters - lookup)
    )
    work = decode_work(1, 0)
    attention = 4 * shape.layers * shape.heads * shape.head_dim
    assert operations(shape, work) - attention == pytest.approx(2 * (shape.active_parameters - lookup))


def test_a_step_of_one_sequence_is_that_of_a_dense_model_as_large_as_what_it_computes_with() -> None:
    costs, mixed, dense = Roofline("h200", reach=CAPTURED), "qwen3-30b-a3b", "llama-3.2-3b"
    assert costs.decode(mixed, 1, 100, 1, 500).seconds < 1.5 * costs.decode(dense, 1, 100, 1, 500).seconds
    grown = {name: costs.decode(name, 1, 100, 64, 0).seconds for name in (mixed, dense)}
    assert grown[dense] < 1.2 * costs.decode(dense, 1, 100, 1, 0).seconds
    assert grown[mixed] > 4 * costs.decode(mixed, 1, 100, 1, 0).seconds, "nearly all experts are read"
