"""What a model of transformers gives for tokens, in one pass: the reference of every step."""

import torch
from transformers import PreTrainedModel


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """float32 [len(tokens), vocab], no cache."""
    logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


@torch.inference_mode()
def undecided(model: PreTrainedModel, tokens: list[int]) -> bool:
    """Whether somewhere two experts score so alike that rounding may choose either."""
    config = model.config
    gemma4 = getattr(config, "enable_moe_block", False)
    count = config.top_k_experts if gemma4 else getattr(config, "num_experts_per_tok", 0)
    every = getattr(config, "num_local_experts", None) or config.num_experts if count else 0
    if not count or count == every:
        return False
    found = model.model(torch.tensor([tokens]), use_cache=False, output_router_logits=True)
    routers = found.router_logits or ()  # of layers that have some
    scores = [one.log() if gemma4 else one for one in routers]  # Gemma 4's are probabilities
    best = [one.topk(count + 1, -1).values for one in scores]
    return any(bool((one[:, -2] - one[:, -1] < 1e-4).any()) for one in best)


def continuation_logits(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The reference's logits at every position where one of ``tokens`` was chosen: [len(tokens), vocab]."""
    return reference_logits(model, prompt + tokens)[len(prompt) - 1 : -1]


def greedy_choices(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[int]:
    """What the reference chooses at each step of that continuation.

    Equal to ``tokens`` exactly when its own greedy decoding gives ``tokens``, by induction over the steps.
    """
    choices: list[int] = continuation_logits(model, prompt, tokens).argmax(-1).tolist()
    return choices
