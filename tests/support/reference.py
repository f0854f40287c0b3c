"""transformers on the same folder: the judge of greedy decoding."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

# Eight prompts of different kinds and lengths; a base model can continue all of them.
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at 100 degrees Celsius because",
    "Die Katze sitzt auf dem Dach und",
    "1, 2, 3, 5, 8, 13,",
    "Q: What is the largest planet?\nA:",
    "In 1969 the first people landed on the Moon. " * 12 + "They",
]


CLOSE = 1e-3  # logits of float32 that differ by less may change places between one pass and many steps


@lru_cache(maxsize=2)
def _model(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def forget() -> None:
    """Models that have judged, and their memory."""
    _model.cache_clear()


def greedy(folder: Path, prompt: list[int], guess: list[int]) -> list[int]:
    """As many greedy token ids as ``guess`` has, in float32, never stopping early.

    A right guess costs one pass: where each of its tokens is the clear best after those before it, they are
    what would have been generated, token by token. Anything else is generated.
    """
    model, ids = _model(folder), torch.tensor([prompt])
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([prompt + guess]), logits_to_keep=len(guess) + 1).logits[0, :-1]
        (best, second), picked = logits.topk(2).values.T, logits.argmax(-1)
        if picked.tolist() == guess and bool((best - second > CLOSE).all()):
            return guess
        mask, count = torch.ones_like(ids), len(guess)
        full = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False)
    return list(full[0, len(prompt) :].tolist())
