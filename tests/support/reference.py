"""transformers on the same folder: the judge of greedy decoding."""

from functools import lru_cache
from pathlib import Path

import torch
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


@lru_cache(maxsize=4)
def greedy(folder: Path, prompts: tuple[tuple[int, ...], ...], tokens: int) -> list[list[int]]:
    """``tokens`` greedy token ids per prompt, float32, one prompt at a time, never stopping early."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    out = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            full = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
            )
            out.append(full[0, len(prompt) :].tolist())
    return out
