"""Careful reading of a model folder's JSON objects: every refusal names the file, the field and the type."""

import json
import reprlib
from pathlib import Path
from typing import Any

from muxd.errors import ModelFolderError

_REQUIRED: Any = object()


# The most that a field may say; what is not listed, _LARGEST. A model beyond them fits no machine, and
# 10 ** 18 must not become as many layers before somebody notices.
_MOST = {
    "num_hidden_layers": 4096,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "moe_intermediate_size": 1 << 24,
    "num_experts": 1 << 16,
    "num_local_experts": 1 << 16,
    "vocab_size": 1 << 26,
}
_LARGEST = (1 << 31) - 1
_LEAST_FLOAT, _LARGEST_FLOAT = 2.0**-126, 3.4e38  # of float32


class Fields:
    """One JSON object whose fields are read with their type checked.

    ``null`` counts as absent, as in transformers. Every method raises ModelFolderError.
    """

    def __init__(self, path: Path, raw: dict[str, Any], prefix: str = ""):
        self.path, self.raw, self._prefix = path, raw, prefix

    def refuse(self, key: str, reason: str) -> ModelFolderError:
        """The error for ``key``, for the caller to raise."""
        return ModelFolderError(f"{self.path}: {self._prefix}{key} {reason}")

    def integer(self, key: str, default: int = _REQUIRED, *, least: int = 1) -> int:
        """A whole number of at least ``least``, and no larger than any model's."""
        value, most = self._value(key, default), _MOST.get(key, _LARGEST)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refuse(key, f"must be a whole number of at least {least}, not {shown(value)}")
        if value > most:
            raise self.refuse(key, f"must be at most {most}, not {shown(value)}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """A whole number of at least 1, or None when absent."""
        return None if self.raw.get(key) is None else self.integer(key)

    def number(self, key: str, default: float = _REQUIRED) -> float:
        """A number above 0 that float32 can hold."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.refuse(key, f"must be a number above 0, not {shown(value)}")
        if not _LEAST_FLOAT <= value <= _LARGEST_FLOAT:
            raise self.refuse(key, f"must be a number above 0, not {shown(value)}, which no float32 can hold")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A number above 0, or None when absent."""
        return None if self.raw.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"must be true or false, not {shown(value)}")
        return value

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, f"must be a string, not {shown(value)}")
        return value

    def table(self, key: str) -> "Fields | None":
        """A nested object, or None when absent."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, f"must be an object, not {shown(value)}")
        return Fields(self.path, value, f"{self._prefix}{key}.")

    def ids(self, key: str) -> list[int]:
        """One token id or a list of them; empty when absent. -1 is none, as some folders write it."""
        value = self.raw.get(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) or item < -1 for item in listed):
            raise self.refuse(key, f"must be a token id or a list of token ids, not {shown(value)}")
        return [item for item in listed if item >= 0]

    def optional_id(self, key: str) -> int | None:
        """The first token id, or None."""
        return next(iter(self.ids(key)), None)

    def must_be(self, key: str, served: object, *, default: object) -> None:
        """Refuse a variant of the architecture that the model page does not compute."""
        value = self.raw.get(key, default)
        value = default if value is None else value
        if value != served:
            raise self.refuse(key, f"= {_json(value)} is not supported; only {_json(served)} is")

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.refuse(key, "is missing")
        return default


def shown(value: object) -> str:
    """A value for an error, whatever its size."""
    try:
        return reprlib.repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"


def _json(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
