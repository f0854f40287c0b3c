"""How a model folder says that hidden states become one vector: sentence-transformers' ``1_Pooling``."""

from pathlib import Path
from typing import Any

from muxd.errors import ModelFolderError
from muxd.messages import Pooling
from muxd.models.files import optional_json

_MODES: dict[str, Pooling] = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_FILE = "1_Pooling/config.json"


def read_pooling(folder: Path) -> Pooling:
    """ "" for a folder that says nothing. Raises ModelFolderError for a mode that is not computed."""
    path = folder / _FILE
    raw: dict[str, Any] = optional_json(path)
    asked = [name for name, value in raw.items() if name.startswith("pooling_mode_") and value is True]
    if not asked:
        return ""
    if len(asked) > 1 or asked[0] not in _MODES:
        known = ", ".join(_MODES)
        raise ModelFolderError(f"{path}: {' with '.join(asked)} is not computed; one of {known} is")
    return _MODES[asked[0]]
