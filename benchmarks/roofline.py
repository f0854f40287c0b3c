"""How close kernels and whole steps come to what this GPU allows; bounds are measured in the same run.

    python benchmarks/roofline.py [--model NAME]... [--part PART]... [--quick] [--json FILE]
    python benchmarks/roofline.py --device cpu --tiny

The bound of a kernel is max(bytes / bandwidth, operations / matrix rate) (the roofline model, Williams et al.
2009), with the bandwidth of a plain read or copy and the rate of a large bfloat16 matrix product. Weights and
contexts are random, shapes are those of real models; no model folder is needed. The second form is a
rehearsal: every line of the benchmark runs on the CPU over a tiny model, and no figure is shown.
"""

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import torch
from provenance import commit
from roofline_device import FULL, QUICK, TINY, Peaks, measure_peaks
from roofline_kernels import MODELS, SMALL, Measurement

# A part measures whatever it likes about the models against the same peaks: add a module and a line. Modules
# are imported when their turn comes: the kernels need nothing but torch and triton.
PARTS = {"kernels": "roofline_kernels", "step": "roofline_step", "answers": "roofline_answers"}
_LINE = "{:<14} {:<28} {:<26} {:>11} {:>11} {:>9} {:<8} {}"


def main() -> None:
    """Print the table as it grows; exits with a reason where there is no GPU."""
    names = [model.name for model in MODELS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", action="append", choices=names, help="only these; default all")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only these; default all")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only with --tiny")
    parser.add_argument("--tiny", action="store_true", help="rehearse on the CPU, show no figures")
    parser.add_argument("--quick", action="store_true", help="few batches and contexts")
    chosen = parser.parse_args()
    dry = chosen.device == "cpu"
    if dry != chosen.tiny or (dry and (chosen.json or chosen.model)):
        parser.error("--device cpu and --tiny go together, without --json and --model: nothing is measured")
    if not dry and not torch.cuda.is_available():
        sys.exit(
            "benchmarks/roofline.py: no CUDA device, and a roofline is a property of one: "
            "run it on the GPU host (torch must be a CUDA build), or rehearse it with --device cpu --tiny"
        )
    plan = TINY if dry else QUICK if chosen.quick else FULL
    models = (SMALL,) if dry else tuple(model for model in MODELS if model.name in (chosen.model or names))
    about, peaks = machine(), measure_peaks(plan)
    print(f"{about['device']}, torch {about['torch']}, triton {about['triton']}, commit {about['commit']}")
    if dry:
        print("rehearsal on the CPU: everything runs, nothing is measured")
    else:
        rate, flops = peaks.bytes_per_second / 1e12, peaks.flops_per_second / 1e12
        print(f"{rate:.2f} TB/s, {flops:.0f} TFLOP/s (bfloat16)")
    print(_LINE.format("model", "kernel", "shape", "us", "bound us", "fraction", "bound by", ""))
    found = []
    for part in chosen.part or PARTS:
        try:
            module = import_module(PARTS[part])
        except ModuleNotFoundError as error:
            print(f"{part}: left out, {error.name} is not installed", file=sys.stderr)
            continue
        for line in module.measure(peaks, models, plan):
            found.append(line)
            print(row(line, dry=dry), flush=True)
            if chosen.json:  # after every line: a run that is cut short keeps what it found
                chosen.json.write_text(json.dumps(report(about, peaks, found), indent=1))


def row(line: Measurement, *, dry: bool = False) -> str:
    """One line of the table."""
    if dry:
        return _LINE.format(line.model, line.kernel, line.shape, "-", "-", "-", "-", "").rstrip()
    times = f"{line.seconds * 1e6:.2f}", f"{line.bound * 1e6:.2f}", f"{line.fraction:.1%}"
    return _LINE.format(line.model, line.kernel, line.shape, *times, line.bound_by, line.note).rstrip()


def report(about: dict[str, str], peaks: Peaks, lines: list[Measurement]) -> dict[str, object]:
    """Everything a table in the documentation needs."""
    results = [{**line._asdict(), "fraction": line.fraction} for line in lines]
    return {"machine": about, "peaks": peaks._asdict(), "results": results}


def machine() -> dict[str, str]:
    """Where and with what this ran."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "commit": commit(),
    }


def _version(package: str) -> str:
    try:
        return str(import_module(package).__version__)
    except ModuleNotFoundError:
        return "none"


if __name__ == "__main__":
    main()
