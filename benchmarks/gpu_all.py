"""Everything that needs a GPU, in one command: `make gpu`, or

    python benchmarks/gpu_all.py [--out DIR] [--device cuda:0] [--minutes 60] [--only STEP]... [--quick]
                                 [--published F]

Steps: doctor, kernel tests and other tests (`pytest -m gpu`), kernels, steps and answers against the
roofline, the share table of a 7B-shaped random model, two colocated models, profiled and under mux, temporal
and spatial. Nothing is fetched: models have real shapes and random weights; tests that want the demo models
are left out where those are not. Each step runs in processes of its own and has its own limit, less than ten
minutes; one that fails or is cut short keeps what it found and does not keep the next from running. DIR gets
a log and JSON of every step, ``summary.json``, and ``measurements.md``, a section ready for
docs/measurements.md: what was measured and what was not. Runs with the same DIR add up. ``--quick``: fewer
models and shapes, some twenty minutes in all. Exit code 0 when every step was good.

``--device cpu`` rehearses the same with tiny models; what it prints are not measurements.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import torch
from msgspec import Struct
from policies import HEADS, row, verdict
from provenance import Machine, machine, markdown_table
from random_model import FORMS, serve
from sim_vs_live import capacity

from muxd.config import home
from muxd.cost.profile import load as load_profile
from muxd.cost.table import CostTable
from muxd.device.choose import open_device
from muxd.errors import ConfigError, MuxdError
from muxd.sim.generate import Recipe, generate
from muxd.sim.report import Report
from muxd.sim.workload import write

HERE = Path(__file__).resolve().parent
MUXD = [sys.executable, "-m", "muxd.cli.muxd"]
_LOAD, _ALPHA = 0.7, 2.1  # of what the device can just serve; unevenness of the models' popularity
_SCALE = "8"
_GRACE = 10.0  # seconds in which a process that is told to end gives back what it holds
_DEMO = ("smollm2-135m-instruct", "gemma3-270m")
_KERNELS = "tests/gpu/test_kernels_gpu.py"
# Kernels of tests compile for minutes, on one core each: these run side by side.
_LANES = {
    "decode": [_KERNELS, "-k", "test_decode"],
    "prefill": [_KERNELS, "-k", "test_prefill or test_rope_write"],
    "others": [_KERNELS, "-k", "not (test_decode or test_prefill or test_rope_write)"],
    "worker": ["tests/worker"],
}
_DEVICE = ["tests/gpu", "tests/e2e"]
# Of whatever plugins a host has only these: warnings are errors, also those of a plugin nobody asked for.
_PLUGINS = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "pytest_timeout,_hypothesis_pytestplugin",
}


class Done(Struct):
    """``state``: good, failed, too long, or not run; ``why`` in words."""

    step: str
    state: str
    seconds: float = 0.0
    why: str = ""


class Kit:
    """What every step needs: where it runs, where its results go, how large its models are."""

    def __init__(self, out: Path, device: str, published: Path | None, seconds: float, quick: bool = False):
        self.out, self.device, self.published, self.quick = out, device, published, quick
        self.rehearsal = device == "cpu"
        self.seconds = seconds  # of the colocated workload
        self.end = 0.0  # of the running step, on the monotonic clock
        self.stopped = False  # by SIGTERM; what runs is ended first

    def run(self, name: str, command: list[str], output: str = "") -> None:
        """One process, its words in ``<name>.log``, or what it prints in ``output``. Raises subprocess
        errors."""
        self.together({name: command}, output)

    def together(self, commands: Mapping[str, list[str]], output: str = "") -> None:
        """Side by side, each with a log of its own. Raises subprocess errors when all have ended."""
        running = {name: self._begun(name, command, output) for name, command in commands.items()}
        try:
            for name, process in running.items():
                while process.poll() is None:
                    if self.stopped:
                        sys.exit(1)
                    if time.monotonic() > self.end:
                        raise subprocess.TimeoutExpired(name, 0)
                    time.sleep(0.1)
        finally:
            for process in running.values():
                _end(process)
        failed = {name: process.returncode for name, process in running.items() if process.returncode}
        if failed:
            raise subprocess.CalledProcessError(next(iter(failed.values())), " and ".join(failed))

    def _begun(self, name: str, command: list[str], output: str) -> "subprocess.Popen[bytes]":
        log = self.out / f"{name}.log"
        with log.open("ab") as errors, (self.out / output if output else log).open("ab") as printed:
            return subprocess.Popen(
                command, cwd=HERE.parent, env={**os.environ, **_PLUGINS},
                stdin=subprocess.DEVNULL, stdout=printed, stderr=errors,
                process_group=0,  # so that what it starts can be ended with it, and all with this session
            )  # fmt: skip

    def script(self, name: str, step: str, *arguments: str) -> None:
        self.run(step, [sys.executable, str(HERE / name), *arguments])


# ---- the steps --------------------------------------------------------------------------------------


def doctor(kit: Kit) -> None:
    (kit.out / "doctor.json").unlink(missing_ok=True)
    kit.run("doctor", [*MUXD, "doctor", "--json", *([] if kit.rehearsal else ["--gpu"])], "doctor.json")


def kernel_tests(kit: Kit) -> None:
    kit.together({f"tests-{name}": _pytest(kit, name, "gpu", *what) for name, what in _LANES.items()})


def tests(kit: Kit) -> None:
    """What has the device for itself: memory that comes back, MPS, faults, daemons."""
    if kit.rehearsal:
        return kit.run("tests", _pytest(kit, "all", "not gpu", *_DEVICE, "-k", "not cpu"))
    demo = all((home() / "models" / name).is_dir() for name in _DEMO)
    which = "gpu" if demo else "gpu and not demo"
    rest = [f"--ignore={lane[0]}" for lane in _LANES.values()]
    return kit.run("tests", _pytest(kit, "all", which, *_DEVICE, *dict.fromkeys(rest)))


def _pytest(kit: Kit, name: str, mark: str, *what: str) -> list[str]:
    report = f"--junitxml={kit.out / f'tests-{name}.xml'}"
    return [sys.executable, "-m", "pytest", "-q", "-rs", "-m", mark, report, *what]


def kernels(kit: Kit) -> None:
    _against_the_roofline(kit, "kernels", "kernels")


def steps(kit: Kit) -> None:
    _against_the_roofline(kit, "steps", "step")


def answers(kit: Kit) -> None:
    _against_the_roofline(kit, "answers", "answers")


def _against_the_roofline(kit: Kit, step: str, part: str) -> None:
    less = ["--quick", "--model", "Qwen2.5-0.5B", "--model", "Llama-3-8B"] if kit.quick else []
    kit.script("roofline.py", step, "--part", part, *less, "--json", str(kit.out / f"{step}.json"))


def shares(kit: Kit) -> None:
    size = ["--shape", "tiny", "--batches", "1", "--lengths", "32"] if kit.rehearsal else []
    if kit.rehearsal:
        size += ["--dtype", "float32", "--shares", "50", "100"]
    elif kit.quick:
        size += ["--shares", "100", "40", "70", "--batches", "1", "32", "--lengths", "128"]
    table = ["--published", str(kit.published)] if kit.published else []
    made = ["--json", str(kit.out / "shares.json"), "--markdown", str(kit.out / "shares.md")]
    kit.script("share_table.py", "shares", "--device", kit.device, *size, *table, *made)


def _forms(kit: Kit) -> dict[str, str]:
    """Two models of different size, by name."""
    if kit.rehearsal:
        return {"small": "tiny", "large": "tiny"}
    return {"small": "qwen-0.5b", "large": "llama-1b"}


def profiles(kit: Kit) -> None:
    """Both models made and measured, for the simulation and the latency that is a model's own."""
    kind, text = "bfloat16" if not kit.rehearsal else "float32", ""
    for seed, (name, form) in enumerate(_forms(kit).items()):
        folder = kit.out / "models" / name
        serve(folder, FORMS[form], seed)
        text += f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "{kind}"\nshare = 50\n'
        options = ["--dtype", kind, "--device", kit.device, "--out", str(kit.out / "cost.json")]
        kit.run("profiles", [*MUXD, "profile", str(folder), "--name", name, *options])
    pool = "8G" if not kit.rehearsal else "64M"
    head = f'[server]\ndevice = "{kit.device}"\n[pool]\nbytes = "{pool}"\n'
    (kit.out / "muxd.toml").write_text(head + text)


def policies(kit: Kit) -> None:
    """Both on one device, the same workload file for every policy."""
    cost, config, workload = (kit.out / name for name in ("cost.json", "muxd.toml", "workload.jsonl"))
    if not config.exists():
        raise ConfigError(f"{config} is not there: the step profiles makes it")
    names = list(_forms(kit))
    rate = _LOAD * capacity(CostTable(load_profile(cost)), names)
    write(workload, generate(Recipe(names, rate, kit.seconds, _ALPHA, 1.0, "lognormal:100,60", seed=1)))
    files = ["--config", str(config), "--cost", str(cost), "--workload", str(workload)]
    made = ["--json", str(kit.out / "policies.json"), "--scale", _SCALE]
    kit.script("policies.py", "policies", *files, "--device", kit.device, *made)


STEPS: dict[str, tuple[Callable[[Kit], None], float]] = {  # and its limit in seconds
    "doctor": (doctor, 240),
    "kernel tests": (kernel_tests, 540),
    "tests": (tests, 540),
    "steps": (steps, 420),
    "profiles": (profiles, 420),
    "policies": (policies, 540),
    "kernels": (kernels, 420),
    "answers": (answers, 420),
    "shares": (shares, 540),
}
_NEEDS_A_GPU = ("kernel tests", "kernels", "steps", "answers")


# ---- what is written ----------------------------------------------------------------------------------


def section(kit: Kit, about: Machine, done: list[Done]) -> str:
    """For docs/measurements.md. Only what this run has measured, and what it has not."""
    kind = "rehearsal on the CPU, no measurements" if kit.rehearsal else "everything in one command (GPU)"
    lines = [f"## {about.fields['date']}, {kind}", "", f"`python benchmarks/gpu_all.py`. {about.line}.", ""]
    rows = [[one.step, one.state, f"{one.seconds:.0f}", one.why] for one in done]
    lines += [markdown_table(["step", "state", "s", "why"], rows), ""]
    for one in done:
        # What was found before a step was cut short counts; without its file there is nothing to show.
        with suppress(OSError, ValueError, ElementTree.ParseError, msgspec.DecodeError):
            if one.state != "not run" and (text := _TEXTS.get(one.step, _nothing)(kit)):
                whole = "" if one.state == "good" else " (not all of it)"
                lines += [f"### {one.step}{whole}", "", text, ""]
    return "\n".join(lines)


def _nothing(_: Kit) -> str:
    return ""


def _doctor(kit: Kit) -> str:
    found = json.loads((kit.out / "doctor.json").read_text())
    rows = [[f["check"], f["state"], f["found"]] for f in found["findings"]]
    return markdown_table(["what", "state", "found"], rows)


def _tests(*names: str) -> Callable[[Kit], str]:
    """Counts alone: a host on which everything is left out has shown nothing."""

    def text(kit: Kit) -> str:
        rows = []
        for name in names:
            suite = next(ElementTree.parse(kit.out / f"tests-{name}.xml").iter("testsuite"))
            keys = ("tests", "failures", "errors", "skipped")
            run, failed, broken, left_out = (int(suite.get(key, 0)) for key in keys)
            counts = run - failed - broken - left_out, failed + broken, left_out
            rows.append([name, *map(str, counts)])
        return markdown_table(["tests", "passed", "failed", "left out"], rows)

    return text


def _roofline(name: str) -> Callable[[Kit], str]:
    def text(kit: Kit) -> str:
        found = json.loads((kit.out / f"{name}.json").read_text())
        rows = [
            [
                r["model"],
                r["kernel"],
                r["shape"],
                f"{1e6 * r['seconds']:.1f}",
                f"{r['fraction']:.0%}",
                r["bound_by"],
                r["note"],
            ]
            for r in found["results"]
        ]
        peaks = found["peaks"]
        rates = peaks["bytes_per_second"] / 1e12, peaks["flops_per_second"] / 1e12
        head = f"Measured here: {rates[0]:.2f} TB/s, {rates[1]:.0f} TFLOP/s in bfloat16."
        heads = ["model", "what", "shape", "us", "of bound", "bound by", "note"]
        return head + "\n\n" + markdown_table(heads, rows)

    return text


def _policies(kit: Kit) -> str:
    reports = msgspec.json.decode((kit.out / "policies.json").read_bytes(), type=list[Report])
    rows = [row(report, float(_SCALE)) for report in reports]
    return (
        markdown_table([*HEADS, f"IN SLO {_SCALE}x"], rows)
        + "\n\n"
        + "\n".join(verdict(reports, float(_SCALE)))
    )


_TEXTS: dict[str, Callable[[Kit], str]] = {
    "doctor": _doctor,
    "kernel tests": _tests(*_LANES),
    "tests": _tests("all"),
    "kernels": _roofline("kernels"),
    "steps": _roofline("steps"),
    "answers": _roofline("answers"),
    "shares": lambda kit: (kit.out / "shares.md").read_text(),
    "policies": _policies,
}


# ---- the run ------------------------------------------------------------------------------------------


def _end(process: "subprocess.Popen[bytes]") -> None:
    """It and all that it has started: a daemon that outlived its step would hold the device's memory."""
    with suppress(ProcessLookupError):
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            end = time.monotonic() + _GRACE
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)  # until nobody is left
                time.sleep(0.05)
    process.wait()


def attempt(kit: Kit, step: str, until: float) -> Done:
    work, limit = STEPS[step]
    if kit.rehearsal and step in _NEEDS_A_GPU:
        return Done(step, "not run", why="needs a GPU")
    begun = time.monotonic()
    if begun >= until:
        return Done(step, "not run", why="the time was up")
    kit.end = min(begun + limit, until)
    state, why = "good", ""
    try:
        work(kit)
    except subprocess.TimeoutExpired as error:
        state, why = "too long", f"cut short after {kit.end - begun:.0f} s; {error.cmd}.log has what there is"
    except subprocess.CalledProcessError as error:
        state, why = "failed", f"exit code {error.returncode}; {error.cmd}.log says why"
    except MuxdError as error:
        state, why = "failed", error.message
    except Exception as error:  # what one step does not expect must not cost the others
        state, why = "failed", f"{type(error).__name__}: {error}"
    return Done(step, state, time.monotonic() - begun, why)


def _about(name: str) -> Machine:
    """Raises MuxdError where there is no such device."""
    try:
        with closing(open_device(name, key="--device")) as device:
            return machine(device)
    except MuxdError as error:
        if not torch.cuda.is_available():
            raise
        # Kernels and steps need torch alone, and the doctor tells what muxd lacks.
        return machine(None, f"a GPU that muxd cannot use: {error.message}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=60.0, help="nothing runs after that")
    parser.add_argument("--only", action="append", choices=list(STEPS), help="only these; default all")
    parser.add_argument("--published", type=Path, help="MuxServe's llama.json, for the share table")
    parser.add_argument("--seconds", type=float, help="of the colocated models' workload; 60, or 30 if quick")
    parser.add_argument("--quick", action="store_true", help="fewer models and shapes")
    args = parser.parse_args()
    try:
        about = _about(args.device)
    except MuxdError as error:
        sys.exit(f"benchmarks/gpu_all.py: {error.message}")
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = args.seconds or (30.0 if args.quick else 60.0)
    published = args.published and args.published.absolute()
    kit = Kit(args.out.absolute(), args.device, published, seconds, args.quick)
    signal.signal(signal.SIGTERM, lambda *_: setattr(kit, "stopped", True))
    until = time.monotonic() + 60 * args.minutes
    done: list[Done] = []
    for step in args.only or STEPS:
        print(f"{step} ...", flush=True)
        done.append(attempt(kit, step, until))
        print(f"{step}: {done[-1].state}, {done[-1].seconds:.0f} s {done[-1].why}", flush=True)
        # After every step: a run that is cut short keeps what it found.
        summary = {"machine": about.fields, "steps": done, "rehearsal": kit.rehearsal}
        (kit.out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary)))
        (kit.out / "measurements.md").write_text(section(kit, about, done))
    print(f"{kit.out}/measurements.md")
    return 0 if all(one.state == "good" for one in done) else 1


if __name__ == "__main__":
    sys.exit(main())
