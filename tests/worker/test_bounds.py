"""Answers held to a form, biased, or kept from tokens: on the host's and the paged step, in one batch with
sequences that nothing holds, whose tokens stay what they are."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.direct_runner import GREEDY, DirectRunner
from support.forms import PATTERNS, schemas
from support.tiny import byte_tokenizer
from support.tiny_models import llama, words
from tokenizers import decoders, models

from muxd.messages import NO_TOKEN, Constraint, Sampling
from muxd.text.tokenizer import Tokenizer
from muxd.worker.bounds import Bound, Bounds, ruled_out

END, VOCAB = 2, 331


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    llama(folder)
    return byte_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(params=["host", "paged"])
def direct(request: pytest.FixtureRequest, folder: Path, few_graphs: None) -> DirectRunner:
    return DirectRunner(folder, paged=request.param == "paged", capture=False, rows=900)


def run(direct: DirectRunner, samplings: list[Sampling], most: int = 400) -> list[list[int]]:
    """All in one batch, until each has said END or has no token; END is left out."""
    prompts = [words(5 + i % 7, seed=i) for i in range(len(samplings))]
    said = [
        direct.prefill([(i, 0, prompt, True)], sampling).tokens
        for i, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]
    for _ in range(most):
        going = [i for i, tokens in enumerate(said) if tokens[-1] not in (END, NO_TOKEN)]
        if not going:
            break
        for i, token in zip(going, direct.decode(going), strict=True):
            said[i].append(token)
    return [tokens[:-1] if tokens[-1] == END else tokens for tokens in said]


def held(constraint: Constraint, tokenizer: Tokenizer, seed: int = 0) -> Sampling:
    """Without blanks, of which random models write many."""
    blanks = tuple((tokenizer.encode(blank, False)[0], -100.0) for blank in "\n\t\r ")
    return Sampling(temperature=seed % 3 / 2, seed=seed, constraint=constraint, bias=tuple(sorted(blanks)))


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_every_answer_fits_its_schema(direct: DirectRunner, tokenizer: Tokenizer, count: int) -> None:
    for first in range(0, count, 12):
        some = schemas(count)[first : first + 12]
        constraints = [Constraint("json_schema", json.dumps(schema), (END,)) for schema in some]
        said = run(direct, [held(one, tokenizer, seed) for seed, one in enumerate(constraints)])
        for schema, tokens in zip(some, said, strict=True):
            text = tokenizer.decode(tokens)
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
                json.loads(text)
            )


@pytest.mark.parametrize("first", range(0, len(PATTERNS), 10))
def test_every_answer_fits_its_pattern(direct: DirectRunner, tokenizer: Tokenizer, first: int) -> None:
    some = PATTERNS[first : first + 10]
    samplings = [
        Sampling(temperature=1.0, seed=i, constraint=Constraint("regex", pattern, (END,)))
        for i, pattern in enumerate(some)
    ]
    for pattern, tokens in zip(some, run(direct, samplings), strict=True):
        text = b"".join(map(tokenizer.token_bytes, tokens)).decode()
        python = pattern.replace(r"\p{L}", r"[^\W\d_]").replace("[[:alpha:]]", "[a-zA-Z]")
        assert re.fullmatch(python, text), (pattern, text)


def test_beside_them_greedy_tokens_stay_as_they_are(direct: DirectRunner, tokenizer: Tokenizer) -> None:
    alone = [tokens[:20] for tokens in run(direct, [GREEDY] * 3, 20)]
    bound = held(Constraint("json_object", "", (END,)), tokenizer)
    mixed = run(direct, [GREEDY, GREEDY, GREEDY, bound, Sampling(temperature=0.0, bias=((9, 5.0),))], 20)
    assert [tokens[:20] for tokens in mixed[:3]] == alone


def test_what_is_computed_again_goes_on_as_it_would_have(direct: DirectRunner, tokenizer: Tokenizer) -> None:
    """After a preemption, or in another worker: its tokens so far come as a prompt."""
    schema = {"type": "array", "items": {"enum": ["red", "green", 12]}, "minItems": 6, "maxItems": 9}
    sampling = Sampling(
        temperature=1.0, seed=5, constraint=Constraint("json_schema", json.dumps(schema), (END,))
    )
    prompt = words(5)
    whole = run(direct, [sampling])[0]
    assert len(whole) > 20
    for cut in (1, 7, 20):
        done = direct.prefill([(9, 0, prompt + whole[:cut], True)], sampling, prompt_tokens=len(prompt))
        again = done.tokens
        while again[-1] != END:
            again += direct.decode([9])
        assert whole[:cut] + again[:-1] == whole


def test_a_bias_decides_and_a_list_is_all_there_is(direct: DirectRunner) -> None:
    said = run(
        direct,
        [
            Sampling(temperature=0.0, bias=((40, 100.0),)),
            Sampling(temperature=1.0, seed=3, allowed=(7, 90, 91)),
            Sampling(temperature=0.0, allowed=(END, 50), bias=((END, -100.0),)),
            Sampling(temperature=0.0, bias=((40, 100.0),), bad_words=((40,),)),
            Sampling(temperature=0.0, allowed=(60, 61), bias=((60, 50.0),), bad_words=((60, 60),)),
        ],
        12,
    )
    assert set(said[0]) == {40}
    assert set(said[1]) == {7, 90, 91}
    assert set(said[2]) == {50}
    assert 40 not in said[3]
    assert said[4] == [60, 61] * 6 + [60]


def test_penalties_and_filters_work_on_what_is_left(direct: DirectRunner) -> None:
    allowed = tuple(range(100, 110))
    bound = Sampling(
        temperature=1.0, seed=1, top_k=3, repetition_penalty=1.5, frequency_penalty=1.0, allowed=allowed
    )
    (said,) = run(direct, [bound], 40)
    assert set(said) <= set(allowed)
    assert len(set(said)) > 3


def test_a_grammar_that_cannot_go_on_ends_its_own_answer_alone(direct: DirectRunner) -> None:
    stuck = Sampling(temperature=0.0, constraint=Constraint("regex", "abc", (END,)), bad_words=((69,),))
    none = Sampling(temperature=0.0, allowed=(5,), bad_words=((5,),))
    wrong = Sampling(temperature=0.0, constraint=Constraint("regex", "(", (END,)))
    alone = run(direct, [GREEDY], 10)[0]
    said = run(direct, [GREEDY, stuck, none, wrong], 10)
    assert said[0] == alone
    assert [tokens[-1] for tokens in said[1:]] == [NO_TOKEN] * 3


def test_the_host_and_the_paged_step_pick_the_same(
    folder: Path, tokenizer: Tokenizer, few_graphs: None
) -> None:
    samplings = [
        held(Constraint("regex", pattern, (END,)), tokenizer, i) for i, pattern in enumerate(PATTERNS[:8])
    ]
    samplings += [
        GREEDY,
        Sampling(temperature=0.9, seed=2, bias=((9, 3.0), (200, -2.5)), bad_words=((8, 9),)),
    ]
    found = [run(DirectRunner(folder, paged=paged, capture=False), samplings, 30) for paged in (False, True)]
    assert found[0] == found[1]


CHOICES = st.lists(st.text(alphabet="abcä ", max_size=6), min_size=1, max_size=6, unique=True)


@pytest.fixture(scope="module")
def bounds(folder: Path) -> Bounds:
    return Bounds(folder, VOCAB)


@given(choices=CHOICES, data=st.data())
def test_only_what_can_become_a_choice_may_come(
    bounds: Bounds, tokenizer: Tokenizer, choices: list[str], data: st.DataObject
) -> None:
    bound = bounds.of(Sampling(constraint=Constraint("choice", json.dumps(choices), (END, 77))))
    assert bound is not None
    ids = [tokenizer.encode(choice, False) for choice in choices]
    said: list[int] = []
    while True:
        may = _may(bound, said)
        goes_on = {one[len(said)] for one in ids if one[: len(said)] == said and len(one) > len(said)}
        assert may == goes_on | ({END, 77} if said in ids else set())
        if not goes_on:
            return
        said.append(data.draw(st.sampled_from(sorted(goes_on))))


def _may(bound: Bound, said: list[int]) -> set[int]:
    mask = bound.mask(said)
    assert mask is not None
    return set(np.flatnonzero(~ruled_out(mask, bound.size)).tolist())


def test_tokens_that_are_text_with_bytes_for_what_it_lacks(tmp_path: Path) -> None:
    """As Llama 2's, Mistral's and Gemma's."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", "ab", "▁a"]
    inner = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("a", "b"), ("▁", "a")], byte_fallback=True)
    )
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    at = {piece: i for i, piece in enumerate(pieces)}
    bound = Bounds(tmp_path, 300).of(
        Sampling(constraint=Constraint("choice", '["ab ä", "</s>", " a"]', (END,)))
    )
    assert bound is not None
    assert _may(bound, []) == {at[piece] for piece in ("a", "ab", "<0x61>", "▁", "▁a", "<0x20>", "<0x3C>")}
    said = [at["ab"], at["▁"]]
    assert _may(bound, said) == {at["<0xC3>"]}
    assert _may(bound, [*said, at["<0xC3>"]]) == {at["<0xA4>"]}
    assert _may(bound, [*said, at["<0xC3>"], at["<0xA4>"]]) == {END}
