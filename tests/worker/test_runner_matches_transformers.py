"""Prefill, chunked prefill and decode through the paged pool give what transformers gives, in float32.

The pool starts full of NaN, blocks and rows are handed out in random order, and rows are used again.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.direct_runner import DirectRunner
from support.logits import continuation_logits, greedy_choices, reference_logits
from support.tiny_models import LLAMA3_ROPE, RELATIVES, gemma3, gemma4, llama, mistral, quick, save, uneven
from support.tiny_models import VARIANTS as SHARED
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
)

VARIANTS = (
    SHARED
    | RELATIVES
    | {
        "llama untied": (llama, {"tie_word_embeddings": False}),
        "llama one KV head each": (llama, {"num_key_value_heads": 6, "head_dim": 16}),
        "llama head_dim not dividing a block": (llama, {"head_dim": 24, "num_key_value_heads": 3}),
        "llama linear rope": (
            llama,
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
        ),
        "gemma3 odd": (gemma3, {"head_dim": 32, "num_key_value_heads": 2, "sliding_window": 7}),
        "gemma3 soft cap, untied": (gemma3, {"final_logit_softcapping": 5.0, "tie_word_embeddings": False}),
    }
)


def _config(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _reread(folder: Path) -> Any:
    """The reference as transformers reads the folder now."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def both_layouts(folder: Path) -> Any:
    """Saved by transformers 5, to which somebody has added a rope_scaling as model cards of 4.x say."""
    llama(folder)
    added = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    _config(folder, lambda config: config | {"rope_scaling": added, "rope_theta": 10_000.0})
    model = _reread(folder)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    return model


def old_layout(folder: Path) -> Any:
    """As Llama 3.1 is published."""
    llama(folder, rope_parameters=LLAMA3_ROPE | {"rope_theta": 5e5})
    old = {"rope_theta": 5e5, "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}}
    _config(folder, lambda config: {k: v for k, v in config.items() if k != "rope_parameters"} | old)
    return _reread(folder)


def long_rope(folder: Path) -> Any:
    factors = [1.0 + i / 7 for i in range(32)]
    rope = {"long_factor": factors, "short_factor": factors, "attention_factor": 1.0}
    more = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    return llama(folder, rope_parameters=rope | more)


def own_head(folder: Path) -> Any:
    """config.json says tied, the file has a head of its own."""
    llama(folder, tie_word_embeddings=False)
    _config(folder, lambda config: config | {"tie_word_embeddings": True})
    model = _reread(folder)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    return model


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def gemma3_that_sees(folder: Path) -> Any:
    text = gemma3(folder / "text").config.to_dict()
    vision = {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision | VISION, mm_tokens_per_image=4)
    return save(Gemma3ForConditionalGeneration(config), folder)


def mistral3(folder: Path) -> Any:
    text = mistral(folder / "text", sliding_window=None).config.to_dict()
    vision = {"model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 8}
    config = Mistral3Config(text_config=text, vision_config=vision | VISION, tie_word_embeddings=False)
    return save(Mistral3ForConditionalGeneration(config), folder)


def gemma4_that_sees(folder: Path) -> Any:
    """With layers that read others' keys and values, for which the folder has some nevertheless."""
    text = gemma4(folder / "text").config.to_dict()
    vision = VISION | {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 16}
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    model = save(uneven(Gemma4ForConditionalGeneration(config)), folder)
    file = folder / "model.safetensors"
    stored = load_file(file)
    layer = "model.language_model.layers.{}.self_attn.{}_proj.weight"
    more = {layer.format(5, part): stored[layer.format(0, part)].clone() for part in "kv"}
    save_file(stored | more, file, {"format": "pt"})
    return model


VARIANTS |= {
    "rope_scaling beside rope_parameters": (both_layouts, {}),
    "llama3 rope of transformers 4": (old_layout, {}),
    "longrope of one list": (long_rope, {}),
    "a head of its own though tied": (own_head, {}),
    "gemma3 that sees": (gemma3_that_sees, {}),
    "gemma4 that sees": (gemma4_that_sees, {}),
    "mistral3 that sees": (mistral3, {}),
}
STEPS = 40  # past row borders, past the window


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed * 1000 + length).choices(range(3, 300), k=length)


@pytest.fixture(scope="module", params=quick(VARIANTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    make, changes = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, **changes)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.float(), wanted, atol=1e-4, rtol=1e-4)


def test_batch_of_unequal_prompts_decodes_to_the_same_tokens_and_logits(
    pair: tuple[Path, Any], native: bool
) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, native=native)
    prompts = [prompt(n) for n in (1, 5, 33, 90)]
    found = direct.generate(prompts, STEPS)
    for i, (tokens, start) in enumerate(zip(found, prompts, strict=True)):
        wanted = continuation_logits(reference, start, tokens)
        assert tokens == wanted.argmax(-1).tolist(), f"prompt of {len(start)}"
        close(torch.stack([logits[i] for logits in direct.logits]), wanted)


def test_a_large_batch_is_split_into_groups_and_keeps_its_order(pair: tuple[Path, Any], native: bool) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, native=native)
    prompts = [prompt(n, seed=1) for n in (3, 70, 2, 31, 64, 1, 12, 128, 4, 40, 7, 100)]
    for tokens, start in zip(direct.generate(prompts, 4), prompts, strict=True):
        assert tokens == greedy_choices(reference, start, tokens)


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunked_prefill_beside_a_decoding_sequence(pair: tuple[Path, Any], native: bool, chunk: int) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, native=native)
    tokens, other = prompt(61), prompt(9)
    running = direct.prefill([(7, 0, other, True)]).tokens
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        done = direct.prefill([(1, start, part, start + chunk >= len(tokens))])
        running += direct.decode([7]) if start % 3 == 0 else []
    found = done.tokens + direct.decode([1]) + direct.decode([1])
    assert found == greedy_choices(reference, tokens, found)
    assert running == greedy_choices(reference, other, running)


def test_several_chunks_of_different_sequences_in_one_batch(pair: tuple[Path, Any], native: bool) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, native=native)
    first, second = prompt(45), prompt(30)
    assert direct.prefill([(1, 0, first[:20], False)]).tokens == []
    done = direct.prefill([(1, 20, first[20:], True), (2, 0, second, True)])
    for i, tokens in enumerate((first, second)):
        wanted = reference_logits(reference, tokens)[-1]
        close(direct.logits[-1][i], wanted)
        assert done.tokens[i] == int(wanted.argmax())


def test_preempted_sequence_is_recomputed_in_other_rows(pair: tuple[Path, Any], native: bool) -> None:
    folder, reference = pair
    direct = DirectRunner(folder, block_bytes=4096, native=native)
    start = prompt(25)
    before = direct.prefill([(1, 0, start, True)]).tokens + direct.decode([1]) + direct.decode([1])
    direct.free(1)
    direct.prefill([(2, 0, prompt(40), True)])  # takes and fills rows that were ours
    again = direct.prefill([(1, 0, start + before, True)], prompt_tokens=len(start)).tokens
    after = again + direct.decode([2, 1])[1:] + direct.decode([1])
    assert len(before + after) == 6
    assert before + after == greedy_choices(reference, start, before + after)
