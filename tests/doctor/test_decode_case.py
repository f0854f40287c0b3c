"""What the doctor times on a GPU, computed once on the CPU by the reference: its inputs are sound."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from muxd.doctor import compute
from muxd.doctor.compute import decode_case


def test_the_timed_step_is_attention_over_the_whole_context() -> None:
    pytest.importorskip("muxd.kernels.paged_decode")
    step = decode_case("cpu", batch=3, context=64)
    out = step(132)
    assert (out.shape, out.dtype) == ((3, 8 * 4 * 128), torch.bfloat16)
    assert out.isfinite().all()
    assert (out > 0).any()


def test_parts_are_timed_when_the_inputs_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of green contexts do not wait for the one on which the inputs are made."""
    order: list[str] = []

    def made(*_: object) -> Callable[[int], None]:
        order.append("inputs")
        return lambda sms: order.append(f"step on {sms}")

    ladder = SimpleNamespace(green=lambda mask: SimpleNamespace(sms=8 * mask, stream=1))
    fake = SimpleNamespace(
        init=lambda: None, is_available=lambda: True, stream=lambda stream: nullcontext(),
        ExternalStream=lambda stream: stream, synchronize=lambda: order.append("wait"),
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(compute, "decode_case", made)
    monkeypatch.setattr("muxd.device.driver.Driver", lambda: SimpleNamespace(retain=lambda: None))
    monkeypatch.setattr("muxd.device.green.Ladder", lambda driver: ladder)
    (finding,) = compute.decode()
    assert order[:3] == ["inputs", "wait", "step on 8"]
    assert set(finding.numbers) == {
        *(f"seconds_{8 * mask}_sms" for mask in (1, 3, 7, 15)),
        "bytes_per_second",
    }
