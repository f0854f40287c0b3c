"""Everything that needs a GPU, in one command: `make gpu`, or

    python benchmarks/gpu_all.py [--out DIR] [--device cuda:0] [--minutes 45] [--only STEP]... [--published F]

Steps: doctor, tests (`pytest -m gpu`), kernels, steps and answers against the roofline, the share table of
a 7B-shaped random model, two colocated models under mux, temporal and spatial. Each runs in a process of
its own and has its own limit; one that fails or is cut short does not keep the next from running. DIR gets
a log and JSON of every step, ``summary.json``, and ``measurements.md``, a section ready for
docs/measurements.md: what was measured and what was not. Exit code 0 when every step was good.

``--device cpu`` rehearses the same with tiny models; what it prints are not measurements.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
from msgspec import Struct
from policies import HEADS, row, verdict
from provenance import Machine, machine, markdown_table
from random_model import FORMS, serve
from sim_vs_live import capacity

from muxd.cost.profile import load as load_profile
from muxd.cost.table import CostTable
from muxd.device.choose import open_device
from muxd.errors import MuxdError
from muxd.sim.generate import Recipe, generate
from muxd.sim.report import Report
from muxd.sim.workload import write

HERE = Path(__file__).resolve().parent
MUXD = [sys.executable, "-m", "muxd.cli.muxd"]
_LOAD, _ALPHA = 0.7, 2.1  # of what the device can just serve; unevenness of the models' popularity
_SCALE = "8"


class Done(Struct):
    """``state``: good, failed, too long, or not run; ``why`` in words."""

    step: str
    state: str
    seconds: float = 0.0
    why: str = ""


class Kit:
    """What every step needs: where it runs, where its results go, how large its models are."""

    def __init__(self, out: Path, device: str, published: Path | None, seconds: float):
        self.out, self.device, self.published = out, device, published
        self.rehearsal = device == "cpu"
        self.seconds = seconds  # of the colocated workload
        self.end = 0.0  # of the running step, on the monotonic clock

    def run(self, name: str, command: list[str]) -> None:
        """One process, its words in ``<name>.log``. Raises subprocess errors."""
        with (self.out / f"{name}.log").open("ab") as log:
            limit = max(1.0, self.end - time.monotonic())
            subprocess.run(
                command, check=True, timeout=limit, cwd=HERE.parent, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def script(self, name: str, step: str, *arguments: str) -> None:
        self.run(step, [sys.executable, str(HERE / name), *arguments])


# ---- the steps --------------------------------------------------------------------------------------


def doctor(kit: Kit) -> None:
    found = subprocess.run(
        [*MUXD, "doctor", "--json", *([] if kit.rehearsal else ["--gpu"])],
        capture_output=True, text=True, check=False, timeout=max(1.0, kit.end - time.monotonic()),
    )  # fmt: skip
    (kit.out / "doctor.json").write_text(found.stdout)
    (kit.out / "doctor.log").write_text(found.stderr)
    found.check_returncode()


def tests(kit: Kit) -> None:
    which = ["-m", "gpu", "tests"] if not kit.rehearsal else ["-m", "not gpu", "tests/gpu"]
    report = f"--junitxml={kit.out / 'tests.xml'}"
    kit.run("tests", [sys.executable, "-m", "pytest", "-q", "-rs", report, *which])


def kernels(kit: Kit) -> None:
    kit.script("roofline.py", "kernels", "--part", "kernels", "--json", str(kit.out / "kernels.json"))


def steps(kit: Kit) -> None:
    kit.script("roofline.py", "steps", "--part", "step", "--json", str(kit.out / "steps.json"))


def answers(kit: Kit) -> None:
    kit.script("roofline.py", "answers", "--part", "answers", "--json", str(kit.out / "answers.json"))


def shares(kit: Kit) -> None:
    size = ["--shape", "tiny", "--batches", "1", "--lengths", "32"] if kit.rehearsal else []
    if kit.rehearsal:
        size += ["--dtype", "float32", "--shares", "50", "100"]
    table = ["--published", str(kit.published)] if kit.published else []
    made = ["--json", str(kit.out / "shares.json"), "--markdown", str(kit.out / "shares.md")]
    kit.script("share_table.py", "shares", "--device", kit.device, *size, *table, *made)


def policies(kit: Kit) -> None:
    """Two models of different size on one device, the same workload file for every policy."""
    forms = (
        {"small": "qwen-0.5b", "large": "llama-1b"}
        if not kit.rehearsal
        else {"small": "tiny", "large": "tiny"}
    )
    folder, cost, config = kit.out / "models", kit.out / "cost.json", kit.out / "muxd.toml"
    kind = "bfloat16" if not kit.rehearsal else "float32"
    text = f'[server]\ndevice = "{kit.device}"\n[pool]\nbytes = "{"8G" if not kit.rehearsal else "64M"}"\n'
    for seed, (name, form) in enumerate(forms.items()):
        serve(folder / name, FORMS[form], seed)
        text += f'[[model]]\nname = "{name}"\npath = "{folder / name}"\ndtype = "{kind}"\nshare = 50\n'
        options = ["--dtype", kind, "--device", kit.device, "--out", str(cost)]
        kit.run("policies", [*MUXD, "profile", str(folder / name), "--name", name, *options])
    config.write_text(text)
    names = list(forms)
    rate = _LOAD * capacity(CostTable(load_profile(cost)), names)
    recipe = Recipe(names, rate, kit.seconds, _ALPHA, 1.0, "lognormal:100,60", seed=1)
    write(kit.out / "workload.jsonl", generate(recipe))
    files = ["--config", str(config), "--cost", str(cost), "--workload", str(kit.out / "workload.jsonl")]
    made = ["--json", str(kit.out / "policies.json"), "--scale", _SCALE]
    kit.script("policies.py", "policies", *files, "--device", kit.device, *made)


STEPS: dict[str, tuple[Callable[[Kit], None], float]] = {  # and its limit in seconds
    "doctor": (doctor, 240),
    "tests": (tests, 600),
    "kernels": (kernels, 420),
    "steps": (steps, 420),
    "answers": (answers, 420),
    "shares": (shares, 600),
    "policies": (policies, 900),
}
_NEEDS_A_GPU = ("kernels", "steps", "answers")


# ---- what is written ----------------------------------------------------------------------------------


def section(kit: Kit, about: Machine, done: list[Done]) -> str:
    """For docs/measurements.md. Only what this run has measured, and what it has not."""
    kind = "rehearsal on the CPU, no measurements" if kit.rehearsal else "everything in one command (GPU)"
    lines = [f"## {about.fields['date']}, {kind}", "", f"`python benchmarks/gpu_all.py`. {about.line}.", ""]
    rows = [[one.step, one.state, f"{one.seconds:.0f}", one.why] for one in done]
    lines += [markdown_table(["step", "state", "s", "why"], rows), ""]
    for one in done:
        if one.state == "good" and (text := _TEXTS.get(one.step, lambda _: "")(kit)):
            lines += [f"### {one.step}", "", text, ""]
    return "\n".join(lines)


def _doctor(kit: Kit) -> str:
    found = json.loads((kit.out / "doctor.json").read_text())
    rows = [[f["check"], f["state"], f["found"]] for f in found["findings"]]
    return markdown_table(["what", "state", "found"], rows)


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
    "kernels": _roofline("kernels"),
    "steps": _roofline("steps"),
    "answers": _roofline("answers"),
    "shares": lambda kit: (kit.out / "shares.md").read_text(),
    "policies": _policies,
}


# ---- the run ------------------------------------------------------------------------------------------


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
    except subprocess.TimeoutExpired:
        state, why = "too long", f"cut short after {kit.end - begun:.0f} s; {step}.log has what there is"
    except subprocess.CalledProcessError as error:
        state, why = "failed", f"exit code {error.returncode}; {step}.log says why"
    except MuxdError as error:
        state, why = "failed", error.message
    return Done(step, state, time.monotonic() - begun, why)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=45.0, help="no step starts after that")
    parser.add_argument("--only", action="append", choices=list(STEPS), help="only these; default all")
    parser.add_argument("--published", type=Path, help="MuxServe's llama.json, for the share table")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the colocated models' workload")
    args = parser.parse_args()
    try:
        with closing(open_device(args.device, key="--device")) as device:
            about = machine(device)
    except MuxdError as error:
        sys.exit(f"benchmarks/gpu_all.py: {error.message}")
    args.out.mkdir(parents=True, exist_ok=True)
    kit = Kit(args.out.absolute(), args.device, args.published and args.published.absolute(), args.seconds)
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
