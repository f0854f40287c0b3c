"""How close kernels and whole steps come to what this GPU allows; bounds are measured in the same run.

    python benchmarks/roofline.py [--model NAME]... [--part PART]... [--json FILE]

The bound of a kernel is max(bytes / bandwidth, operations / matrix rate) (the roofline model, Williams et al.
2009), with the bandwidth of a plain read or copy and the rate of a large bfloat16 matrix product. Weights and
contexts are random, shapes are those of real models; no model folder is needed.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import roofline_kernels
import roofline_step
import torch
from roofline_device import Peaks, measure_peaks
from roofline_kernels import MODELS, Measurement, ModelShape

# A part measures whatever it likes about the models against the same peaks: add a module and a line.
PARTS: dict[str, Callable[[Peaks, tuple[ModelShape, ...]], Iterator[Measurement]]] = {
    "kernels": roofline_kernels.measure,
    "step": roofline_step.measure,
}
_LINE = "{:<14} {:<22} {:<26} {:>11} {:>11} {:>9} {}"


def main() -> None:
    """Print the table as it grows; exits with a reason where there is no GPU."""
    names = [model.name for model in MODELS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", action="append", choices=names, help="only these; default all")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only these; default all")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "benchmarks/roofline.py: no CUDA device, and a roofline is a property of one: "
            "run it on the GPU host (torch must be a CUDA build)"
        )
    models = tuple(model for model in MODELS if model.name in (chosen.model or names))
    about, peaks = machine(), measure_peaks()
    print(f"{about['device']}, torch {about['torch']}, triton {about['triton']}, commit {about['commit']}")
    print(f"{peaks.bytes_per_second / 1e12:.2f} TB/s, {peaks.flops_per_second / 1e12:.0f} TFLOP/s (bfloat16)")
    print(_LINE.format("model", "kernel", "shape", "us", "bound us", "fraction", "bound by"))
    found = []
    for part in chosen.part or PARTS:
        for line in PARTS[part](peaks, models):
            found.append(line)
            print(row(line), flush=True)
            if chosen.json:  # after every line: a run that is cut short keeps what it found
                chosen.json.write_text(json.dumps(report(about, peaks, found), indent=1))


def row(line: Measurement) -> str:
    """One line of the table."""
    times = f"{line.seconds * 1e6:.2f}", f"{line.bound * 1e6:.2f}", f"{line.fraction:.1%}"
    return _LINE.format(line.model, line.kernel, line.shape, *times, line.bound_by)


def report(about: dict[str, str], peaks: Peaks, lines: list[Measurement]) -> dict[str, object]:
    """Everything a table in the documentation needs."""
    results = [{**line._asdict(), "fraction": line.fraction} for line in lines]
    return {"machine": about, "peaks": peaks._asdict(), "results": results}


def machine() -> dict[str, str]:
    """Where and with what this ran."""
    import triton

    asked = ["git", "rev-parse", "--short", "HEAD"]
    folder = Path(__file__).parent
    commit = subprocess.run(asked, capture_output=True, text=True, cwd=folder, check=False).stdout.strip()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "triton": triton.__version__,
        "commit": commit or "unknown",
    }


if __name__ == "__main__":
    main()
