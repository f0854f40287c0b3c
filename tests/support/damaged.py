"""Logits as damaged weights or an overflow make them, and everything that ``Sampling`` can hold."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

VOCAB = 40
ODD = (float("nan"), float("inf"), float("-inf"), 0.0, 3e38, -3e38, 1e-45, -0.0)

single = st.floats(width=32)  # NaN and infinities among them
SAMPLINGS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": single | st.sampled_from([0.0, 5e-324, 1e-46, 1e-39, 0.7, 1.0]),
    "top_p": st.floats() | st.sampled_from([0.0, 1.0, 0.9, 5e-324]),
    "top_k": st.integers(-1, 2**31 - 1) | st.integers(0, 5),
    "min_p": st.floats() | st.sampled_from([0.0, 0.5, 1.0, 7.0]),
    "seed": st.integers(0, 2**63 - 1),
    "presence_penalty": single | st.just(0.0),
    "frequency_penalty": single | st.just(0.0),
    "repetition_penalty": single | st.just(1.0),
    "min_tokens": st.integers(0, 4) | st.just(2**31 - 1),
    "banned_first": st.lists(st.integers(-1, VOCAB + 3), max_size=VOCAB).map(tuple)
    | st.just(tuple(range(VOCAB))),
    "logprobs": st.integers(-1, 3),
}


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """float32 [VOCAB]: sound, with some odd numbers in it, or full of one."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    row = torch.randn(VOCAB, generator=generator) * draw(st.sampled_from([1.0, 50.0, 1e30]))
    kind = draw(st.sampled_from(["sound", "some", "all"]))
    if kind == "some":
        for at in draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5)):
            row[at] = draw(st.sampled_from(ODD))
    return torch.full((VOCAB,), draw(st.sampled_from(ODD))) if kind == "all" else row


def sound(row: Tensor) -> bool:
    """Whether it has a finite maximum and no NaN."""
    return bool(row.max().isfinite())
