"""Where paged steps are tested, and with how few graphs."""

from collections.abc import Iterator

import pytest
import torch

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
        yield


@pytest.fixture(params=["native", "torch"])
def native(request: pytest.FixtureRequest) -> bool:
    """Whether the native step computes, or torch, which is its reference and where there is no compiler."""
    return bool(request.param == "native")
