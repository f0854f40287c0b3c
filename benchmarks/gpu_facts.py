"""What kind of host this is, for whoever reads the results later: driver, programs, versions, devices.

    python benchmarks/gpu_facts.py

Standard library, and whatever of the rest can be imported. Each question fails alone.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_ASKED = (
    ("nvidia-smi",),
    (
        "nvidia-smi",
        "--query-gpu=compute_mode,persistence_mode,mig.mode.current,ecc.mode.current,clocks.sm,clocks.mem",
        "--format=csv",
    ),
    ("free", "-g"),
)
_PROGRAMS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "gcc", "git", "nvcc", "nvidia-modprobe")
_PACKAGES = (
    *("torch", "triton", "numpy", "transformers", "safetensors", "tokenizers", "msgspec", "pyzmq", "highspy"),
    *("gguf", "uvloop", "aiohttp", "nvidia-ml-py", "openai", "pytest", "pytest-timeout", "hypothesis"),
)
_IMPORTED = ("torch", "muxd.daemon", "muxd.worker.cuda_step")  # a package that is there may still not load


def main() -> None:
    print(platform.platform(), sys.version.split()[0], sys.executable, f"{os.cpu_count()} cores")
    for command in _ASKED:
        print(said(command))
    for name in _PROGRAMS:
        print(f"{name}: {shutil.which(name) or 'not on PATH'}")
    print(
        "Python.h:", Path(sysconfig.get_paths()["include"], "Python.h").exists(), "(Triton compiles with it)"
    )
    print("devices:", *sorted(map(str, Path("/dev").glob("nvidia*"))))
    for name in _PACKAGES:
        print(f"{name}: {version_of(name)}")
    for name in _IMPORTED:
        print(f"import {name}: {imported(name)}", flush=True)


def said(command: Sequence[str]) -> str:
    """What a program prints, or why it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return (done.stdout + done.stderr).strip()


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def imported(name: str) -> str:
    """Whether it loads, and why not: whatever that raises must not end the list."""
    try:
        return str(import_module(name).__file__)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
