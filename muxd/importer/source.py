"""One opened GGUF file: typed metadata and tensors, every defect reported with the file's name.

The ``gguf`` library does the reading. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, ReaderField, ReaderTensor

from muxd.errors import ModelFolderError


class _BoundedReader(GGUFReader):
    """The library's reader slices past the end of a short file without a word, and would then loop over a
    damaged array length for hours; here every read is inside the file or an error."""

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > self.data.size:
            raise ValueError(
                f"the file ends after {self.data.size} bytes but names data up to byte {end} (truncated?)"
            )
        return super()._get(int(offset), dtype, int(count), override_order)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        for field in fields:
            name, number = bytes(field.parts[1]).decode(), int(field.parts[4][0])
            if number not in set(GGMLQuantizationType):
                raise ValueError(f"tensor {name!r} has quantisation number {number}, which is not known")
        super()._build_tensors(start_offs, fields)


class GgufFile:
    """Read-only view of a GGUF file. Raises ModelFolderError for anything that is not as the format says."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                magic = file.read(4)
            if magic != b"GGUF":
                self.fail(f"not a GGUF file (it begins with {magic!r})")
            self._reader = _BoundedReader(path)
        except OSError as error:
            self.fail(f"cannot be read: {error.strerror or error}")
        except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
            self.fail(f"damaged GGUF: {error}")
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}

    def fail(self, reason: str) -> NoReturn:
        """Raise ModelFolderError about this file."""
        raise ModelFolderError(f"{self.path}: {reason}")

    def get(self, key: str) -> Any:
        """The value of a metadata key as plain Python data, None where the file has no such key."""
        field = self._reader.fields.get(key)
        try:
            return None if field is None else field.contents()
        except (ValueError, IndexError) as error:  # UnicodeDecodeError is a ValueError
            self.fail(f"metadata key {key!r} cannot be decoded: {error}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises ModelFolderError if missing without default or of another type; so do the rest."""
        return str(self._typed(key, (str,), default))

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        return int(self._typed(key, (int,), default))

    def number(self, key: str, default: float | None = None) -> float:
        """A number. GGUF keeps 32-bit floats: 1e-6 comes back as 9.99999997e-07, so the shortest decimal
        with the same 32 bits is returned, which is what the model's author wrote."""
        return float(str(np.float32(self._typed(key, (float, int), default))))

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        return bool(self._typed(key, (bool,), default))

    def array(self, key: str, kind: type) -> list[Any]:
        """A list whose items are all of ``kind``."""
        items = self._typed(key, (list,), None)
        if not all(isinstance(item, kind) for item in items):
            self.fail(f"metadata key {key!r} must be a list of {kind.__name__}")
        return list(items)

    def token_id(self, role: str) -> int | None:
        """``tokenizer.ggml.{role}_token_id``, None if absent; checked against the vocabulary's size."""
        key = f"tokenizer.ggml.{role}_token_id"
        if self.get(key) is None:
            return None
        value, size = self.integer(key), len(self._reader.fields["tokenizer.ggml.tokens"].data)
        if not 0 <= value < size:
            self.fail(f"metadata key {key!r} is {value}, outside the vocabulary of {size} tokens")
        return value

    def _typed(self, key: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            self.fail(f"metadata key {key!r} is missing")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.fail(f"metadata key {key!r} is {type(value).__name__}, expected {kinds[0].__name__}")
        return value
