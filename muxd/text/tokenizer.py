"""A model folder's tokenizer: text to ids and back, and what the folder says about special tokens.

The ``tokenizers`` library does the work; nothing here imports torch or transformers.
"""

import hashlib
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import tokenizers

from muxd.errors import ModelFolderError
from muxd.models.files import optional_json, read_bytes
from muxd.text.pieces import Pieces
from muxd.text.token_names import TokenNames

_LARGEST = 1 << 29  # bytes of a tokenizer.json; Gemma's has 33 MB


class Tokenizer:
    """Made by ``load``. Not changed afterwards, so all requests of a model share it, and all models of a
    process whose files say the same: one of 256,000 entries takes some 100 MB, and holds the interpreter's
    lock for a second while it is made. So the daemon has none (``token_names.py``).

    ``specials`` are the special token strings by role as templates know them (``bos_token``, ...); ``eos``
    are the ids that end a text by the tokenizer's own files. The model's files may name others. ``key``: of
    what the files say.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        specials: dict[str, str],
        eos: frozenset[int],
        *,
        add_bos: bool = False,
        key: bytes = b"",
    ):
        """Raises ValueError for a decoder that ``Pieces`` cannot take apart."""
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.specials = specials
        self.eos, self.key = eos, key
        self.bos: int | None = inner.token_to_id(specials["bos_token"]) if "bos_token" in specials else None
        self._first = self.bos if add_bos else None
        self.vocab_size = inner.get_vocab_size(with_added_tokens=True)
        added = inner.get_added_tokens_decoder().items()
        special = {one.content: token for token, one in added if one.special}
        self.special_ids = sorted(special.values())
        decoder = inner.decoder.__getstate__().decode() if inner.decoder else ""
        self.pieces = Pieces(decoder, special, self.name)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Raises ModelFolderError naming the file that is missing or damaged."""
        file = _text(folder)
        settings = optional_json(folder / "tokenizer_config.json")
        older = optional_json(folder / "special_tokens_map.json")
        specials = {
            key: text
            for key in older | settings
            if key.endswith("_token") and (text := _content(settings.get(key, older.get(key))))
        }
        ends = [end for said in (settings, older) if (end := _content(said.get("eos_token")))]
        add_bos = settings.get("add_bos_token") is True
        rest = repr((sorted(specials.items()), ends, add_bos)).encode("utf-8", "replace")
        key = hashlib.sha256(file).digest() + hashlib.sha256(rest).digest()
        with _loading:  # of several at once with one tokenizer the first makes it
            if (found := _loaded.get(key)) is None:
                with _refusals(folder / "tokenizer.json"):
                    inner = tokenizers.Tokenizer.from_str(file.decode("utf-8", "replace"))
                    eos = frozenset(id for end in ends if (id := inner.token_to_id(end)) is not None)
                    found = _loaded[key] = cls(inner, specials, eos, add_bos=add_bos, key=key)
        return found

    def name(self, token: int) -> str | None:
        """As the file writes it; None: there is no such token."""
        return self._inner.id_to_token(token) if 0 <= token < 1 << 32 else None

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

    def names(self, size: int) -> TokenNames:
        """What the daemon needs of it, for the tokens below ``size``."""
        texts = list(map(self._inner.id_to_token, range(size)))
        encoded = [(text or "").encode() for text in texts]
        missing = [token for token, text in enumerate(texts) if text is None]
        ends = array("i", accumulate(map(len, encoded)))
        pieces, key = self.pieces, self.key + size.to_bytes(8)
        return TokenNames(key, pieces.decoder, pieces.special, b"".join(encoded), ends.tobytes(), missing)

    def token_bytes(self, token: int) -> bytes:
        """One token by itself, as the ``bytes`` of an OpenAI logprob entry; special tokens by their name."""
        return self.pieces.alone(token)


# As long as anybody holds them, by what their files say.
_loaded: WeakValueDictionary[bytes, Tokenizer] = WeakValueDictionary()
_loading = threading.Lock()


def _text(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    try:
        return read_bytes(path, _LARGEST)
    except FileNotFoundError:
        more = ""
        if (folder / "tokenizer.model").exists():
            more = (
                "; tokenizer.model alone is not read: transformers' "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) makes it"
            )
        _fail(path, f"is missing; a model folder needs it{more}")


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Whatever the library raises of a bad file: plain Exception, or what no ``except Exception`` catches."""
    try:
        yield
    except Exception as error:
        _fail(path, f"is not a tokenizer that can be used: {error}")
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Rust's; no module exports it
            raise
        _fail(path, f"is not a tokenizer that can be used: {error}")


def _content(value: Any) -> str | None:
    """tokenizer_config.json writes a special token as a string or as an object with ``content``."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _fail(path: Path, reason: str) -> NoReturn:
    raise ModelFolderError(f"{path}: {reason}")
