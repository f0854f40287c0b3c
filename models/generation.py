"""``generation_config.json``: what ends an answer and how one is sampled unless a request says otherwise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from muxd.models.config_file import Fields
from muxd.models.files import optional_json

_SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Generation(Struct, frozen=True):
    """Both are empty where there is no such file, or it does not say. ``sampling`` is not checked."""

    eos_ids: tuple[int, ...]
    sampling: Mapping[str, Any]


def read_generation(folder: Path) -> Generation:
    """Raises ModelFolderError naming the file, and the field where it is one."""
    path = folder / "generation_config.json"
    raw = optional_json(path)
    sampling = {key: raw[key] for key in _SAMPLING_KEYS if raw.get(key) is not None}
    return Generation(tuple(Fields(path, raw).ids("eos_token_id")), sampling)
