"""A model of which a batch of each phase computes at once, and decode steps run ahead: real scheduler,
Handover and two Runners over one pool, or one Runner for both phases, on tensors of the CPU.

Work is begun and answered in any order that two workers can, or that one can: it begins commands as they
come, and its device ends prefills and steps in any order. There what a prefill has the device do may be done
as late as its answer, behind steps that began after it; or steps are woven in between its layers."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.ledger_runner import LedgerRunner
from support.tiny_models import llama, qwen3_5
from support.two_phases import BLOCK_BYTES, MOST, ROWS, Pair

from muxd.messages import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_graphs: None) -> Path:
    folder = tmp_path_factory.mktemp("model")
    llama(folder)
    return folder


def words(number: int, length: int) -> list[int]:
    return Random(number * 100 + length).choices(range(3, 300), k=length)


@pytest.fixture(scope="module")
def reference(folder: Path) -> LedgerRunner:
    return LedgerRunner({"m": folder}, ROWS * 6, BLOCK_BYTES, paged=False)


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory, few_graphs: None) -> tuple[Path, LedgerRunner]:
    """A model whose sequences have a state, and who computes it alone."""
    folder = tmp_path_factory.mktemp("keeping")
    qwen3_5(folder)
    return folder, LedgerRunner({"m": folder}, 1000, BLOCK_BYTES, paged=False)


def alone(reference: LedgerRunner, prompt: list[int], tokens: int, sampling: Sampling) -> list[int]:
    one = reference.start("m", prompt, sampling=sampling, cache=False)
    while len(one.answer) < tokens:
        reference.step(one)
    reference.finish(one)
    return one.answer


SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, seed=4),
    Sampling(top_p=0.9, repetition_penalty=1.3, seed=7),
)
ARRIVE = st.tuples(
    st.just("arrive"), st.integers(1, 50), st.integers(1, 20), st.integers(0, 2), st.integers(0, 12)
)
PHASE = st.sampled_from(["prefill", "decode", "decode"])
EVENTS = st.lists(
    st.one_of(
        ARRIVE,
        st.tuples(st.just("begin"), PHASE),
        st.tuples(st.just("answer"), PHASE),
        st.tuples(st.just("answer"), PHASE),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
    ),
    min_size=5,
    max_size=60,
)

HOW: list[dict[str, bool]] = [
    {},
    {"beside": True},
    {"beside": True, "slow": True},
    {"beside": True, "woven": True},
    {"beside": True, "woven": True, "graphs": False},
]
_NAMES = ["two workers", "one", "one, prefills late", "one, steps before graphs", "one, steps between layers"]


@settings(max_examples=examples(60))
@given(EVENTS, st.sampled_from([ROWS, 9]), st.integers(0, 99), st.sampled_from(HOW))
def test_any_order_of_two_workers_or_phases_gives_the_tokens_of_one_request_alone(
    folder: Path,
    reference: LedgerRunner,
    events: list[tuple],  # type: ignore[type-arg]
    rows: int,
    seed: int,
    how: dict[str, bool],
) -> None:
    """Each answer may stop at a token it really says. With few rows some are preempted."""
    pair, expected, rest = Pair(folder, rows, **how), list[list[int]](), Random(seed)
    for kind, *args in events:
        if kind == "arrive" and len(expected) < 5:
            length, tokens, which, stop = args
            prompt, sampling = words(len(expected), length), SAMPLINGS[which]
            said = alone(reference, prompt, tokens, sampling)
            stops = frozenset(said[stop : stop + 1])
            expected.append(said[: next((i for i, token in enumerate(said) if token in stops), len(said))])
            pair.arrive(prompt, tokens, sampling, stops)
        elif kind == "begin":
            pair.begin(*args)
        elif kind == "answer":
            pair.answer(*args)
        elif kind == "cancel" and args[0] < len(expected):
            pair.cancel(args[0])
    left = set(range(len(expected))) - pair.over
    for _ in range(MOST):
        if not pair.busy:
            break
        phase = rest.choice(pair.busy)
        (pair.begin if rest.random() < 0.4 else pair.answer)(phase)
    assert not pair.busy, "the workers do not come to rest"
    assert left <= pair.over
    for number, whole in enumerate(expected):
        got = pair.answers[number]
        assert got == whole if number in left else got == whole[: len(got)]
    assert pair.ledger.unheld_blocks == pair.ledger.total_blocks


def play(pair: Pair, until: Callable[[], bool]) -> None:
    """Prompts first; every batch is begun as late as can be."""
    for _ in range(MOST):
        if until():
            return
        pair.answer("prefill" if pair.sent["prefill"] else "decode")
    raise AssertionError("it never comes to that")


@pytest.mark.parametrize("how", HOW, ids=_NAMES)
def test_a_prompt_is_computed_beside_two_steps_and_joins_them(
    folder: Path, reference: LedgerRunner, how: dict[str, bool]
) -> None:
    pair, greedy = Pair(folder, **how), SAMPLINGS[0]
    expected = [alone(reference, words(i, 20 + i), 40, greedy) for i in range(3)]
    for number in range(2):
        pair.arrive(words(number, 20 + number), 40, greedy, frozenset())
        play(pair, lambda: bool(pair.answers[-1]))
    play(pair, lambda: [len(sent.writes) for sent in pair.sent["decode"]] == [2, 2])
    pair.arrive(words(2, 22), 40, greedy, frozenset())
    pair.cancel(0)
    play(pair, lambda: len(pair.sent["decode"]) == 2 and bool(pair.answers[2]))
    play(pair, lambda: not pair.busy)
    assert pair.answers[1:] == expected[1:]
    assert pair.answers[0] == expected[0][: len(pair.answers[0])]
    assert pair.ahead > 10
    assert pair.side_by_side
    assert bool(pair.inside) is how.get("woven", False)
    assert pair.ledger.unheld_blocks == pair.ledger.total_blocks


@pytest.mark.parametrize("how", HOW[:4], ids=[*_NAMES[:3], "one, steps between layers"])
def test_states_go_from_prompts_to_steps_and_their_copies_to_later_prompts(
    keeping: tuple[Path, LedgerRunner], how: dict[str, bool]
) -> None:
    """A prompt's state is copied where its last whole row ends, while others step; its own next step changes
    it. Prompts that begin alike begin behind the copy."""
    folder, one = keeping
    pair, greedy = Pair(folder, 200, cache=True, **how), SAMPLINGS[0]
    begin = words(0, 9 * one.row_tokens["m"])
    prompts = [begin, begin + words(1, 5), begin + words(2, 30), words(3, 73), words(3, 73) + words(4, 9)]
    expected = [alone(one, prompt, 12, greedy) for prompt in prompts]
    for number, prompt in enumerate(prompts):
        pair.arrive(prompt, 12, greedy, frozenset())
        play(pair, lambda: bool(pair.answers[-1]))
        assert pair.copied > number
    play(pair, lambda: not pair.busy)
    assert pair.answers == expected
    assert pair.side_by_side
    assert pair.ledger.unheld_blocks == pair.ledger.total_blocks
