"""One opened GGUF file: typed metadata and tensors, every defect reported with the file's name.

The ``gguf`` library does the reading. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, ReaderField, ReaderTensor

from muxd.errors import ModelFolderError
from muxd.models.files import open_regular, refuse_pointer
from muxd.models.folder import hint


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


_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
_MOST = {"block_count": 4096}  # by the end of a key; others _LARGEST
_LARGEST = (1 << 31) - 1


class GgufFile:
    """Read-only view of a GGUF file, or of all the parts that llama.cpp's gguf-split made of one: ``path`` is
    the first, which has the metadata, ``paths`` are all.

    Raises ModelFolderError for anything that is not as the format says.
    """

    def __init__(self, path: Path):
        self.path, self.paths = path, [path]
        self._reader = self._opened(path)
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in self._reader.tensors}
        if (parts := self.integer("split.count", 1)) > 1:
            self._add_parts(parts)

    def _add_parts(self, count: int) -> None:
        named = _PART.fullmatch(self.path.name)
        if named is None or int(named[3]) != count:
            self.fail(f"one of {count} parts, but it is not named ...-00001-of-{count:05}.gguf as they are")
        if int(named[2]) != 1:
            self.fail(f"part {int(named[2])} of {count}: give the first, {named[1]}-00001-of-{named[3]}.gguf")
        for number in range(2, count + 1):
            path = self.path.with_name(f"{named[1]}-{number:05}-of-{named[3]}.gguf")
            for tensor in self._opened(path).tensors:
                if tensor.name in self.tensors:
                    self.fail(f"tensor {tensor.name!r} is in {path.name}, too")
                self.tensors[tensor.name] = tensor
            self.paths.append(path)
        if (said := self.integer("split.tensors.count", len(self.tensors))) != len(self.tensors):
            self.fail(f"the parts hold {len(self.tensors)} tensors, the first says {said}")

    def _opened(self, path: Path) -> _BoundedReader:
        try:
            with open_regular(path) as file:
                begin = file.read(64)
            refuse_pointer(path, begin)
            if begin[:4] != b"GGUF":
                _refuse(path, f"not a GGUF file (it begins with {begin[:4]!r})")
            return _BoundedReader(path)
        except FileNotFoundError:
            _refuse(path, f"no such file{hint(path)}")
        except OSError as error:
            _refuse(path, f"cannot be read: {error.strerror or error}")
        except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
            _refuse(path, f"damaged GGUF: {error}")

    def fail(self, reason: str) -> NoReturn:
        """Raise ModelFolderError about this file."""
        _refuse(self.path, reason)

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
        """A whole number that is not negative, and no larger than any model's."""
        value, most = int(self._typed(key, (int,), default)), _MOST.get(key.rpartition(".")[2], _LARGEST)
        if not 0 <= value <= most:
            self.fail(f"metadata key {key!r} is {value}, expected 0 to {most}")
        return value

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


def _refuse(path: Path, reason: str) -> NoReturn:
    raise ModelFolderError(f"{path}: {reason}")
