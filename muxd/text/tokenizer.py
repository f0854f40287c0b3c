"""A model folder's tokenizer: text to ids and back, and what the folder says about special tokens.

The ``tokenizers`` library does the work; nothing here imports torch or transformers.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import tokenizers

from muxd.errors import ModelFolderError
from muxd.text.pieces import Pieces


class Tokenizer:
    """Made by ``load``. Not changed afterwards, so all requests of a model share it.

    ``specials`` are the special token strings by role as templates know them (``bos_token``, ...); ``eos``
    are the ids that end a text, from generation_config.json, else config.json, else the eos token.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        specials: dict[str, str],
        eos: frozenset[int],
        *,
        add_bos: bool = False,
    ):
        """Raises ValueError for a decoder that ``Pieces`` cannot take apart."""
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.specials = specials
        self.eos = eos
        self.bos: int | None = inner.token_to_id(specials["bos_token"]) if "bos_token" in specials else None
        self._first = self.bos if add_bos else None
        self.vocab_size = inner.get_vocab_size(with_added_tokens=True)
        self.pieces = Pieces(inner)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Raises ModelFolderError naming the file that is missing or damaged."""
        path = folder / "tokenizer.json"
        try:
            inner = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            _fail(path, f"cannot be read: {error.strerror}")
        except Exception as error:  # the library raises plain Exception for a bad file
            _fail(path, f"is not a tokenizer: {error}")
        settings = read_json(folder / "tokenizer_config.json")
        specials = {
            name: text for name in settings if name.endswith("_token") and (text := _content(settings[name]))
        }
        eos = _eos(folder, inner, specials.get("eos_token"))
        try:
            return cls(inner, specials, eos, add_bos=settings.get("add_bos_token") is True)
        except ValueError as error:
            _fail(path, str(error))

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Ids of ``text``. Special tokens written in it become their ids; ``add_special`` adds bos and eos
        where the folder says so (not for a rendered chat template, which wrote its own)."""
        ids = self._inner.encode(text, add_special_tokens=add_special).ids
        if add_special and self._first is not None and ids[:1] != [self._first]:
            ids.insert(0, self._first)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids`` without special tokens; ids outside the vocabulary add nothing."""
        return self._inner.decode(ids, skip_special_tokens=True)

    def token_bytes(self, token: int) -> bytes:
        """One token by itself, as the ``bytes`` of an OpenAI logprob entry; special tokens by their name."""
        return self.pieces.alone(token)


def _eos(folder: Path, inner: tokenizers.Tokenizer, eos_token: str | None) -> frozenset[int]:
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not ids or not all(type(i) is int and i >= 0 for i in ids):
            _fail(folder / name, f"eos_token_id must be a token id or a list of them, not {found!r}")
        return frozenset(ids)
    known = inner.token_to_id(eos_token) if eos_token is not None else None
    return frozenset() if known is None else frozenset({known})


def _content(value: Any) -> str | None:
    """tokenizer_config.json writes a special token as a string or as an object with ``content``."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        _fail(path, f"cannot be read: {error.strerror}")
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        _fail(path, f"is not JSON: {error}")
    if not isinstance(value, dict):
        _fail(path, "must hold a JSON object")
    return value


def _fail(path: Path, reason: str) -> NoReturn:
    raise ModelFolderError(f"{path}: {reason}")
