"""Files of every architecture that can be imported, by name."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from support.gguf_files import Alter, Tiny
from support.gguf_writers import WRITERS

from muxd.config import home


@pytest.fixture
def write_tiny(tmp_path: Path) -> Callable[..., Tiny]:
    """``write_tiny("llama", quantisation="Q8_0", alter=...)`` writes a file into the test's own folder."""

    def write(architecture: str, quantisation: str = "F32", alter: Alter | None = None) -> Tiny:
        kind = gguf.GGMLQuantizationType[quantisation]
        return WRITERS[architecture](tmp_path / f"{architecture}-{quantisation}.gguf", kind, alter)

    return write


@pytest.fixture(scope="session")
def demo_folders() -> dict[str, Path]:
    models = home() / "models"
    found = {path.name: path for path in models.glob("[!.]*")} if models.is_dir() else {}
    if not {"smollm2-135m-instruct", "gemma3-270m"} <= found.keys():
        pytest.skip(f"the demo models are not in {models}; `make demo` fetches them")
    return found
