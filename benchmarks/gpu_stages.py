"""The stages of a run on a GPU, in three parts: two for a host that is there for minutes, and the rest.

Part 1: does it work at all, and how close is a step to the device; part 2: the questions whose answers
change kernels; part 3: the tables of docs/measurements.md. In each, what is worth most comes first, and
kernel tests compile beside what is not timed.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stages import Stage

HERE = Path(__file__).resolve().parent
KERNEL_TESTS = "tests/gpu/test_kernels_gpu.py"
# Kernels of tests compile for minutes, on one core each: side by side. What is in no lane is in the last.
LANES = {
    "decode": ("test_decode", "test_shapes", "test_float8"),
    "prefill": ("test_prefill", "test_rope_write"),
    "others": (),
}
_NOT_SERVED = "(dtype1 or dtype2)"  # float16 and float32 of the tests' parameters; bfloat16 is what is served
_MODELS = ("--model", "Qwen2.5-0.5B", "--model", "Llama-3-8B")
_EIGHT_MIB = {"CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"}


class Kit(NamedTuple):
    """``results``: folder; ``demo``: whether the demo models are there."""

    results: Path
    device: str = "cuda:0"
    quick: bool = False
    published: Path | None = None
    demo: bool = False

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"


class Part(NamedTuple):
    """``seconds``: what it takes at most, unless the caller says otherwise."""

    seconds: float
    stages: Callable[[Kit], list[Stage]]


def first(kit: Kit) -> list[Stage]:
    both = ("tests/gpu/test_memory_between_processes.py", "tests/gpu/test_torch_over_mapped_memory.py")
    return [
        _script("facts", 30, "gpu_facts.py"),
        *_kernel_tests(kit, "kernels", f"not {_NOT_SERVED}", 260),
        _tests(kit, "worker", 260, "tests/worker", lane=True),
        _doctor(100, "--gpu"),
        _tests(kit, "memory", 90, *both, "-k", "not doctor and not comes_back"),
        _tests(kit, "sharing", 90, "tests/gpu/test_sharing_the_device.py"),
        _tests(kit, "serving", 150, "tests/e2e/test_random_models.py"),
        # Both it and the limits compare what NVML says is used before and after: nobody else may use any.
        _tests(kit, "memory-back", 40, both[0], "-k", "comes_back")._replace(alone=True),
        _roofline(kit, "steps", 150, "--part", "step", "--quick", *_MODELS),
        _probe(kit, "limits", 75, alone=True),
        _probe(kit, "launches", 45, alone=True),
        _probe(kit, "linears", 90, alone=True),
    ]


def second(kit: Kit) -> list[Stage]:
    return [
        _probe(kit, "decode", 75, alone=True),
        _probe(kit, "sampling", 45, alone=True),
        _probe(kit, "worker", 60, alone=True),
        _probe(kit, "prefill", 60, alone=True),
        _probe(kit, "addresses", 30, alone=True),
        _probe(kit, "float8", 30, alone=True),
        _probe(kit, "linears", 45, alone=True, name="linears-8-mib")._replace(env=_EIGHT_MIB),
    ]


def third(kit: Kit) -> list[Stage]:
    quick = ("--quick", *_MODELS) if kit.quick else ()
    which = "gpu" if kit.demo else "gpu and not demo"
    colocated = [_colocated(kit, "profiles", 420), _colocated(kit, "policies", 540)]
    stages = [
        *_kernel_tests(kit, "other-dtypes", _NOT_SERVED, 540),
        _tests(kit, "all", 540, "tests/gpu", "tests/e2e", f"--ignore={KERNEL_TESTS}", mark=which)._replace(
            alone=True
        ),
        *colocated,
        _roofline(kit, "kernels", 420, "--part", "kernels", *quick),
        _roofline(kit, "answers", 420, "--part", "answers", *quick),
        _shares(kit),
    ]
    return [*stages, *([] if kit.quick else [_roofline(kit, "all-steps", 420, "--part", "step")])]


def rehearsal(kit: Kit) -> list[Stage]:
    """On the CPU, tiny, of every kind of stage one; what is printed there is no measurement."""
    return [
        _script("facts", 60, "gpu_facts.py"),
        _doctor(120),
        *(
            _probe(kit, name, 120)
            for name in ("launches", "linears", "decode", "sampling", "prefill", "worker")
        ),
        _colocated(kit, "profiles", 420),
        _colocated(kit, "policies", 540),
        _shares(kit),
    ]


PARTS = {1: Part(555, first), 2: Part(190, second), 3: Part(4200, third)}


# ---- kinds of stages ----------------------------------------------------------------------------------


def _script(name: str, seconds: float, file: str, *arguments: str) -> Stage:
    return Stage(name, (sys.executable, str(HERE / file), *arguments), seconds)


def _probe(kit: Kit, subject: str, seconds: float, *, alone: bool = False, name: str = "") -> Stage:
    made = ("--out", str(kit.results / f"{name or subject}.jsonl"))
    dry = ("--dry",) if kit.rehearsal else ()
    return _script(name or subject, seconds, f"probe_{subject}.py", *made, *dry)._replace(alone=alone)


def _doctor(seconds: float, *options: str) -> Stage:
    command = (sys.executable, "-m", "muxd.cli.muxd", "doctor", "--json", *options)
    return Stage("doctor", command, seconds, output="doctor.json")


def _tests(kit: Kit, name: str, seconds: float, *what: str, mark: str = "gpu", lane: bool = False) -> Stage:
    # -v: a process that is ended has named the test that it was in.
    options = ("-v", "-rfEs", "--tb=short", "-m", mark, "--timeout=120")
    stage, report = f"tests-{name}", ("--junitxml", str(kit.results / f"tests-{name}.xml"))
    return Stage(stage, (sys.executable, "-m", "pytest", *options, *report, *what), seconds, lane)


def _kernel_tests(kit: Kit, of: str, which: str, seconds: float) -> list[Stage]:
    named = " or ".join(word for words in LANES.values() for word in words)
    chosen = {name: f"({' or '.join(words)})" if words else f"not ({named})" for name, words in LANES.items()}
    return [
        _tests(kit, f"{of}-{name}", seconds, KERNEL_TESTS, "-k", f"{words} and {which}", lane=True)
        for name, words in chosen.items()
    ]


def _roofline(kit: Kit, name: str, seconds: float, *options: str) -> Stage:
    made = ("--json", str(kit.results / f"{name}.json"))
    return _script(name, seconds, "roofline.py", *options, *made)._replace(alone=True)


def _shares(kit: Kit) -> Stage:
    made = ("--json", str(kit.results / "shares.json"), "--markdown", str(kit.results / "shares.md"))
    size: tuple[str, ...] = ("--published", str(kit.published)) if kit.published else ()
    if kit.rehearsal:
        tiny = ("--shape", "tiny", "--batches", "1", "--lengths", "32")
        size += (*tiny, "--dtype", "float32", "--shares", "50", "100")
    elif kit.quick:
        size += ("--shares", "100", "40", "70", "--batches", "1", "32", "--lengths", "128")
    whole = _script("shares", 540, "share_table.py", "--device", kit.device, *size, *made)
    return whole._replace(alone=True)


def _colocated(kit: Kit, step: str, seconds: float) -> Stage:
    options = ("--device", kit.device, "--results", str(kit.results))
    seconds_of_work = "10" if kit.rehearsal else "30" if kit.quick else "60"
    long = ("--seconds", seconds_of_work) if step == "policies" else ()
    return _script(step, seconds, "colocated.py", step, *options, *long)._replace(alone=True)
