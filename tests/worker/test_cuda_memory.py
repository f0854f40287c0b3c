"""How much memory torch may take in a worker on a GPU, over a stand-in for its allocator's numbers."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.direct_runner import DirectRunner
from support.tiny_models import llama

from muxd.device.green import KEPT
from muxd.errors import OutOfMemory
from muxd.worker.cuda_memory import MARGIN, Scratch, allowance

MB = 1 << 20
SIZES = st.integers(0, 1 << 40)


@given(SIZES, SIZES, SIZES)
def test_what_the_warm_up_took_is_always_allowed(reckoned: int, peak: int, graphs: int) -> None:
    found = allowance(reckoned, peak, graphs)
    assert found >= reckoned
    assert found - peak >= KEPT * graphs
    assert found in (reckoned, peak + KEPT * graphs)


class Allocator:
    """torch.cuda's side of it."""

    def __init__(self) -> None:
        self.reserved, self.cached, self.peak = 0, 0, 0
        self.fraction = 1.0

    def take(self, nbytes: int, cached: int = 0) -> None:
        self.reserved += nbytes + cached
        self.cached += cached
        self.peak = max(self.peak, self.reserved)

    def numbers(self) -> dict[str, Callable[..., Any]]:
        def empty() -> None:
            self.reserved, self.cached = self.reserved - self.cached, 0

        def limit(fraction: float, device: torch.device) -> None:
            self.fraction = fraction

        return dict(
            empty_cache=empty, set_per_process_memory_fraction=limit,
            memory_reserved=lambda device: self.reserved, max_memory_reserved=lambda device: self.peak,
            get_device_properties=lambda device: SimpleNamespace(total_memory=1000 * MB),
        )  # fmt: skip


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    made = Allocator()
    for name, answer in made.numbers().items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return made


def warmed(allocator: Allocator, reckoned: int) -> Scratch:
    """A rehearsal that left 50 MB cached, and graphs of 20 MB."""
    scratch = Scratch("chat", torch.device("cuda", 0), reckoned)
    allocator.take(30 * MB, cached=50 * MB)
    with scratch.recorded():
        allocator.take(20 * MB, cached=5 * MB)
    scratch.limit()
    return scratch


def test_a_worker_may_take_what_is_set_aside(allocator: Allocator, caplog: pytest.LogCaptureFixture) -> None:
    warmed(allocator, 400 * MB)
    assert allocator.fraction == pytest.approx(0.4 * MARGIN)
    assert not caplog.records


def test_too_little_set_aside_is_said_and_not_fatal(
    allocator: Allocator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warmed(allocator, 100 * MB)
    assert allocator.fraction == pytest.approx(MARGIN * (80 + KEPT * 20) / 1000)
    assert f"chat needs {80 + KEPT * 20} MB beside pool and weights, and 100 are reckoned" in caplog.text


def test_without_a_budget_and_on_the_cpu_nothing_is_limited(allocator: Allocator) -> None:
    warmed(allocator, 0)
    assert allocator.fraction == 1.0
    scratch = Scratch("chat", torch.device("cpu"), 100 * MB)
    with scratch.recorded():
        pass
    scratch.limit()
    assert allocator.fraction == 1.0


def test_the_error_at_the_limit_names_the_model_and_what_to_lower(allocator: Allocator) -> None:
    for scratch, kind in (
        (warmed(allocator, 400 * MB), OutOfMemory),
        (Scratch("chat", torch.device("cuda", 0), 0), torch.OutOfMemoryError),  # nobody's limit: as it is
    ):
        with pytest.raises(kind) as caught, scratch.named():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        assert ("chat needs more than the 600 MB" in str(caught.value)) == (kind is OutOfMemory)
    with pytest.raises(ValueError, match="else"), scratch.named():
        raise ValueError("something else")


def test_a_batch_that_finds_no_memory_ends_with_that_error(
    tmp_path: Path, allocator: Allocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop reports a batch that raised, and the worker ends: nothing waits for it."""
    llama(tmp_path)
    direct = DirectRunner(tmp_path, paged=True)
    step = direct.runner._step
    monkeypatch.setattr(step, "_scratch", warmed(allocator, 400 * MB))

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(step.model, "hidden", full)
    with pytest.raises(
        OutOfMemory, match="chat needs more than the 600 MB it may take beside pool and weights"
    ):
        direct.prefill([(1, 0, [5, 6, 7], True)])
