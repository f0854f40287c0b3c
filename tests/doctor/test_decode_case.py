"""What the doctor times on a GPU, computed once on the CPU by the reference: its inputs are sound."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
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

    contexts = SimpleNamespace(green=lambda mask: SimpleNamespace(sms=8 * mask, stream=1))
    fake = SimpleNamespace(
        init=lambda: None, is_available=lambda: True, stream=lambda stream: nullcontext(),
        ExternalStream=lambda stream: stream, synchronize=lambda: order.append("wait"),
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(compute, "decode_case", made)
    monkeypatch.setattr(compute, "no_compiler", lambda: None)
    monkeypatch.setattr("muxd.device.driver.Driver", lambda: SimpleNamespace(retain=lambda: None))
    monkeypatch.setattr("muxd.device.green.GreenContexts", lambda driver: contexts)
    (finding,) = compute.decode()
    assert order[:3] == ["inputs", "wait", "step on 8"]
    assert set(finding.numbers) == {
        *(f"seconds_{8 * mask}_sms" for mask in (1, 3, 7, 15)),
        "bytes_per_second",
    }


def test_a_host_on_which_triton_cannot_build_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    finding = compute.no_compiler()
    assert finding is not None
    assert finding.fatal
    assert "no C compiler" in finding.found
    monkeypatch.setenv("CC", "cc")
    assert compute.no_compiler() is None
    (tmp_path / "Python.h").unlink()
    finding = compute.no_compiler()
    assert finding is not None
    assert "python3-dev" in finding.todo
