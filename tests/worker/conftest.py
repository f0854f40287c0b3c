"""Where paged steps are tested, and with how few graphs."""

from collections.abc import Iterator

import pytest
import torch

from muxd.kernels import native as kernels
from muxd.worker import cuda_step


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return str(request.param)


@pytest.fixture(scope="module")
def few_graphs() -> Iterator[None]:
    """For tests that make many workers: each records its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_step, "buckets_for", lambda most: (1, 2, 4))
        patch.setattr(cuda_step, "PROMPTS", (16, 32, 64))
        yield


@pytest.fixture(params=["native", "least", "torch"], scope="module")
def native(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the native step computes, for this CPU or for the least that is served, or torch, which is its
    reference and serves where there is no compiler."""
    if request.param == "torch":
        yield False
        return
    if why := kernels.missing():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "least":
            compiled = kernels.library("x86-64-v3")
            patch.setattr(kernels, "library", lambda: compiled)
        yield True
