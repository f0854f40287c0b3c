"""Files of every architecture that can be imported, by name."""

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from support.gguf_files import (
    Alter,
    Tiny,
    write_gemma,
    write_gemma2,
    write_granite,
    write_llama,
    write_olmo2,
    write_qwen2,
    write_qwen3,
    write_smollm3,
)
from support.gguf_mixtures import write_mixtral, write_qwen3moe

from muxd.config import home

WRITERS = {
    "llama": write_llama, "qwen2": write_qwen2, "qwen3": write_qwen3, "gemma3": write_gemma,
    "gemma2": write_gemma2, "granite": write_granite, "smollm3": write_smollm3, "olmo2": write_olmo2,
    "qwen3moe": write_qwen3moe, "mixtral": write_mixtral,
}  # fmt: skip


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
