"""The roofline benchmark where it cannot measure: its cases run on references, its arithmetic is checked."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import roofline_kernels

    return roofline_kernels


def test_every_case_runs_and_has_a_bound(kernels: Any) -> None:
    from roofline_device import TINY

    made = [make() for make in kernels.cases(kernels.SMALL, TINY)]
    made += [make() for one in kernels.mixtures(TINY) for make in kernels.expert_cases(one, TINY)]
    assert len({(case.kernel, case.shape) for case in made}) == len(made) == 2 + 1 + 9 + 8 + 3
    for case in made:
        assert case.nbytes > 0
        for i in (0, case.cycles - 1):
            found = case.step(i)
            assert bool(torch.isfinite(found.float()).all())


def test_bytes_and_operations_of_known_shapes(kernels: Any) -> None:
    """By hand: 8 KV heads x 128 x K and V x 2 bytes = 4 KiB a token; 4 operations a head_dim and pair."""
    model = kernels.MODELS[3]
    assert model.kv_bytes == 4096
    case = kernels.decode_attention(model._replace(vocab=8), "cpu", 1, 512)
    assert case.nbytes == 512 * 4096 + 2 * 32 * 128 * 2
    assert case.flops == 4 * 512 * 32 * 128
    from roofline_device import Peaks

    peaks = Peaks(4e12, 800e12)
    assert peaks.bound(4e12, 0) == 1.0
    assert peaks.bound(4e12, 1600e12) == 2.0


def test_whole_steps_run_and_their_bounds_are_known(kernels: Any) -> None:
    """By hand for Llama 3 8B: 7.5 billion weights, of which 525 million in the head; 128 KiB a token."""
    import roofline_step as step

    model = kernels.MODELS[3]
    assert step.weights_of(model) == 32 * (4096 * 128 * 80 + 3 * 4096 * 14336) + 4096 * 128256
    nbytes, flops = step.decode_cost(model, 8, 512)
    assert nbytes == 2 * step.weights_of(model) + 8 * 513 * 131072
    assert flops == 16 * step.weights_of(model) + 4 * 8 * 512 * 32 * 4096
    assert step.prefill_cost(model, 1)[1] == 2 * step.weights_of(model) + 2 * 32 * 4096
    with torch.inference_mode():
        found = []
        for recorded in (True, False):
            torch.manual_seed(0)
            bench = step.Bench(kernels.SMALL, 200, 60, "cpu", recorded)
            sequences = bench.sequences(3, 40)
            bench.prefill(sequences[0], 40)
            before = [list(s.history) for s in sequences]
            assert bench.ahead(sequences, 3) > 0
            assert [s.history for s in sequences] == before
            found.append(bench.decode(sequences))
            bench.forget(sequences)
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_the_account_of_a_step_counts_what_overlaps_once(kernels: Any) -> None:
    from roofline_step import account

    events = [("void f<int>(a)", 10.0, 20.0), ("g", 15.0, 30.0), ("g", 40.0, 50.0), ("f", 41.0, 45.0)]
    busy, note = account(events)
    assert busy == pytest.approx(30e-6)
    assert note == "gaps 25.0% of 40 us; g 64%, void f 26%, f 10%"


def test_answers_are_those_of_transformers_over_the_same_weights(
    kernels: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole comparison on the CPU: each peer answers every shape, and nearly every first token agrees."""
    import roofline_answers
    from roofline_device import TINY, Peaks

    torch.manual_seed(0)
    lines = list(
        roofline_answers.measure(Peaks(1e9, 1e9), (kernels.SMALL, kernels.SMALL._replace(qwen2=True)), TINY)
    )
    assert not capsys.readouterr().err.count("Error")
    assert [line.kernel for line in lines] == ["answers", *roofline_answers._PEERS] * 4
    for line in lines:
        assert line.note.startswith(f"{4 * int(line.shape.split()[0]) / line.seconds:,.0f} tokens/s")
    assert all(lines[i].note.endswith("3/3 begin alike") for i in (5, 11))


def test_the_rehearsal_shows_no_figure() -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "roofline.py"),
        "--device",
        "cpu",
        "--tiny",
        "--part",
        "kernels",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing is measured" in done.stdout
    assert "top-p, flat" in done.stdout
    assert "%" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(BENCHMARKS / "roofline.py")]  # the form that measures
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no CUDA device" in done.stderr
    assert not done.stdout


def test_the_report_is_json_with_fractions(kernels: Any) -> None:
    import roofline
    from roofline_device import Peaks

    line = kernels.Measurement("kernels", "m", "k", "s", 2e-6, 1e-6, "memory")
    report = json.loads(json.dumps(roofline.report({"device": "d"}, Peaks(1.0, 2.0), [line])))
    assert report["results"][0]["fraction"] == 0.5
    assert report["peaks"] == {"bytes_per_second": 1.0, "flops_per_second": 2.0}
    assert "50.0%" in roofline.row(line)


def test_what_is_timed_begins_when_its_inputs_are_there(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made on the default stream, read on another: without a wait a table of blocks may still be garbage."""
    from roofline_device import FULL, seconds_of

    order: list[str] = []

    class Stream:
        def wait_stream(self, other: str) -> None:
            order.append(f"wait for {other}")

    class Event:
        def __init__(self, enable_timing: bool):
            pass

        def record(self) -> None:
            pass

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: "Event") -> float:
            return 3.0

    graph = SimpleNamespace(replay=lambda: order.append("replay"), reset=lambda: None)
    fake = SimpleNamespace(
        Stream=Stream, Event=Event, CUDAGraph=lambda: graph, graph=lambda made, stream: nullcontext(),
        stream=lambda stream: nullcontext(), current_stream=lambda: "default", synchronize=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr("roofline_device.torch.cuda", fake)
    assert seconds_of(FULL, lambda i: order.append("step"), 2) == pytest.approx(0.0015)
    assert order[:6] == ["wait for default", "step", "step", "step", "step", "replay"]
