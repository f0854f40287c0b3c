"""Careful reading of a model folder's JSON files: every refusal names the file, the field and the type.

Used by ``muxd.models.spec`` and ``muxd.models.rope`` only.
"""

import json
from pathlib import Path
from typing import Any

from muxd.errors import ModelFolderError

_REQUIRED: Any = object()


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``. Raises ModelFolderError when it is missing, unreadable or no JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing; a model folder needs it") from None
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFolderError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelFolderError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


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
        """A whole number of at least ``least``."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refuse(key, f"must be a whole number of at least {least}, not {value!r}")
        return value

    def optional_integer(self, key: str) -> int | None:
        """A whole number of at least 1, or None when absent."""
        return None if self.raw.get(key) is None else self.integer(key)

    def number(self, key: str, default: float = _REQUIRED) -> float:
        """A number above 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.refuse(key, f"must be a number above 0, not {value!r}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A number above 0, or None when absent."""
        return None if self.raw.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, f"must be a string, not {value!r}")
        return value

    def table(self, key: str) -> "Fields | None":
        """A nested object, or None when absent."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, f"must be an object, not {value!r}")
        return Fields(self.path, value, f"{self._prefix}{key}.")

    def ids(self, key: str) -> list[int]:
        """One token id or a list of them; empty when absent."""
        value = self.raw.get(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in listed):
            raise self.refuse(key, f"must be a token id or a list of token ids, not {value!r}")
        return listed

    def optional_id(self, key: str) -> int | None:
        """The first token id, or None."""
        return next(iter(self.ids(key)), None)

    def must_be(self, key: str, served: object, *, default: object) -> None:
        """Refuse a variant of the architecture that the model page does not compute."""
        value = self.raw.get(key, default)
        value = default if value is None else value
        if value != served:
            raise self.refuse(key, f"= {json.dumps(value)} is not supported; only {json.dumps(served)} is")

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self.refuse(key, "is missing")
        return default
