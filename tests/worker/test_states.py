"""Models whose layers keep a state of each sequence in the pool: the tokens and logits of transformers in
float32, whatever is computed beside them, however a prompt is cut, and whoever had the rows before."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.direct_runner import GREEDY, DirectRunner, int32
from support.ledger_runner import LedgerRunner
from support.logits import continuation_logits, greedy_choices, reference_logits, undecided
from support.tiny_models import STATES, qwen3_5, qwen3_5_moe, words

from muxd.messages import Chunk, Decode, Joined, NewRows, Prefill, Sampling

STEPS = 40  # past row borders


def of_one_tensor(folder: Path) -> Any:
    """Experts as they are published: all of a layer in one tensor, gates first."""
    model = qwen3_5_moe(folder)
    tensors, experts = load_file(folder / "model.safetensors"), model.config.num_experts
    for layer in range(model.config.num_hidden_layers):
        (prefix,) = {name.partition(".experts.")[0] for name in tensors if f".{layer}.mlp.experts." in name}
        each = [
            {part: tensors.pop(f"{prefix}.experts.{i}.{part}_proj.weight") for part in ("gate", "up", "down")}
            for i in range(experts)
        ]
        both = [torch.cat((one["gate"], one["up"])) for one in each]
        tensors[f"{prefix}.experts.gate_up_proj"] = torch.stack(both)
        tensors[f"{prefix}.experts.down_proj"] = torch.stack([one["down"] for one in each])
    save_file(tensors, folder / "model.safetensors")
    return model


def with_more_heads(folder: Path) -> Any:
    """What predicts several tokens at once is stored beside the model, and left out."""
    model = qwen3_5(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"mtp.fc.weight": torch.ones(4, 4)}, folder / "model.safetensors")
    return model


VARIANTS = STATES | {
    "experts of one tensor": (of_one_tensor, {}),
    "with heads that are left out": (with_more_heads, {}),
}
Pair = tuple[Path, Any]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    make, changes = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, **changes)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("one")
    return folder, qwen3_5(folder)


def direct_of(folder: Path, **options: Any) -> DirectRunner:
    return DirectRunner(folder, block_bytes=4096, native=False, **options)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.float(), wanted, atol=1e-4, rtol=1e-4)


def test_unequal_prompts_decode_to_the_same_tokens_and_logits(pair: Pair) -> None:
    folder, reference = pair
    direct = direct_of(folder)
    prompts = [words(n) for n in (1, 5, 64, 90)]
    for i, tokens in enumerate(direct.generate(prompts, STEPS)):
        wanted = continuation_logits(reference, prompts[i], tokens)
        if not undecided(reference, prompts[i] + tokens):
            assert tokens == wanted.argmax(-1).tolist()
            close(torch.stack([logits[i] for logits in direct.logits]), wanted)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_how_a_prompt_is_cut_changes_nothing(pair: Pair, chunk: int) -> None:
    folder, reference = pair
    direct = direct_of(folder)
    tokens, other = words(61), words(9)
    running = direct.prefill([(7, 0, other, True)]).tokens
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        done = direct.prefill([(1, start, part, start + chunk >= len(tokens))])
        close(direct.logits[-1][0], reference_logits(reference, tokens)[-1]) if done.tokens else None
        running += direct.decode([7]) if start % 3 == 0 else []
    found = done.tokens + direct.decode([1]) + direct.decode([1])
    assert found == greedy_choices(reference, tokens, found)
    assert running == greedy_choices(reference, other, running)


def test_a_preempted_sequence_is_computed_again_in_rows_that_others_had(one: Pair) -> None:
    folder, reference = one
    direct, start = direct_of(folder, rows=24), words(25)
    before = direct.prefill([(1, 0, start, True)]).tokens + direct.decode([1]) + direct.decode([1])
    direct.free(1)
    direct.prefill([(2, 0, words(40), True)])
    again = direct.prefill([(1, 0, start + before, True)], prompt_tokens=len(start)).tokens
    after = again + direct.decode([2, 1])[1:] + direct.decode([1])
    assert before + after == greedy_choices(reference, start, before + after)


def test_many_sequences_step_in_groups_and_keep_their_order(
    one: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, reference = one
    monkeypatch.setattr("muxd.worker.states._SCRATCH_BYTES", 1)
    direct = direct_of(folder)
    prompts = [words(n, seed=1) for n in (3, 70, 2, 31, 1, 12)]
    for tokens, start in zip(direct.generate(prompts, 4), prompts, strict=True):
        assert tokens == greedy_choices(reference, start, tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_state_is_float32_whatever_the_weights_are(one: Pair, dtype: Any) -> None:
    """So that its answers stay near float32's, however many tokens went through it."""
    folder, reference = one
    direct = direct_of(folder, dtype=dtype)
    tokens = direct.generate([words(60)], 30)[0]
    wanted = continuation_logits(reference, words(60), tokens)
    found = torch.stack([logits[0] for logits in direct.logits]).float()
    assert float((found - wanted).abs().mean()) < 0.05 * float(wanted.abs().max())


def test_warm_up_touches_no_block_of_the_pool_and_batches_only_their_own(one: Pair) -> None:
    direct = direct_of(one[0])
    direct.runner.warm_up()
    assert bool((direct.pool == 0xFF).all())
    assert not direct.runner._sequences
    direct.generate([[5, 6, 7], [8] * 40], 20)
    changed = (direct.pool.view(-1, 4096) != 0xFF).any(1).nonzero().flatten().tolist()
    assert set(changed) <= set(direct.blocks_in_use())
    assert len(changed) > 0.8 * len(direct.blocks_in_use())


def test_another_process_goes_on_with_the_state_that_one_has_left(one: Pair) -> None:
    folder, reference = one
    host = LedgerRunner({"m": folder}, 4000)
    it, start = host.start("m", words(33)), words(33)
    decoding = host.another("m")
    held = [*it.rows, *it.state]
    blocks = host.ledger._accounts["m"].table[held].ravel().tolist()
    joined = Joined(
        it.id, int32(it.tokens), int32(it.rows), GREEDY, len(start), state=int32(it.state)
    )  # fmt: skip
    command = Decode(1, 100, NewRows(int32(held), int32(blocks)), [it.id], [], [], joined=[joined])
    tokens = it.answer + decoding.decode(command).tokens
    while len(tokens) < 6:
        tokens += decoding.decode(Decode(len(tokens), 100, NewRows(), [it.id], [], [])).tokens
    assert tokens == greedy_choices(reference, start, tokens)


@pytest.mark.parametrize("many", [-1, 1])
def test_a_state_needs_just_its_rows(one: Pair, many: int) -> None:
    direct = direct_of(one[0])
    rows = direct._grow(1, 3)
    state = [direct._free.pop() for _ in range(direct._state_rows + many)]
    chunk = Chunk(1, 0, int32([5, 6, 7]), int32(rows), True, GREEDY, 3, state=int32(state))
    with pytest.raises(ValueError, match="sequence 1: its state needs"):
        direct.runner.prefill(Prefill(1, 100, direct._new(rows + state), [chunk], []))


def test_a_row_of_a_state_that_was_never_named_is_refused(one: Pair) -> None:
    direct = direct_of(one[0])
    rows = direct._grow(1, 3)
    state = [direct._free.pop() for _ in range(direct._state_rows)]
    chunk = Chunk(1, 0, int32([5, 6, 7]), int32(rows), True, GREEDY, 3, state=int32(state))
    with pytest.raises(ValueError, match="never named in NewRows"):
        direct.runner.prefill(Prefill(1, 100, direct._new(rows + state[:-1]), [chunk], []))


def test_sampled_answers_are_the_same_in_other_company(one: Pair) -> None:
    folder, _ = one
    sampling = Sampling(temperature=0.9, seed=5, repetition_penalty=1.2)
    draw = random.Random(3)
    answers = []
    for company in (0, 3):
        direct = direct_of(folder, seed=company)
        chunks = [(seq, 0, words(draw.randint(1, 40), seq), True) for seq in range(1, company + 1)]
        token = direct.prefill([(9, 0, words(20), True), *chunks], sampling).tokens[0]
        seqs = [9, *range(1, company + 1)]
        answers.append([token, *(direct.decode(seqs)[0] for _ in range(20))])
    assert answers[0] == answers[1]
