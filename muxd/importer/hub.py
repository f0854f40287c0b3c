"""A repository of the Hugging Face hub: which of its files make a model that muxd reads, and fetching them.

The hub's own library speaks to it: it finds the token (HF_TOKEN, or its login) and follows HF_ENDPOINT to a
mirror. It reads its environment when it is imported, so this module is imported when something is pulled.
"""

import errno
import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

# Both are documented, though not in __all__.
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]
from msgspec import Struct

from muxd.errors import ConfigError
from muxd.importer.progress import Progress

# What ``muxd.models`` and ``muxd.text`` read of a folder beside its weights. Nothing else is asked for: no
# pickles, no code.
_BESIDE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|chat_template)\.json"
    r"|(quantize_config|quant_config|hf_quant_config)\.json"  # which say how a folder is quantised
    r"|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja|1_Pooling/config\.json"
)
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_GGUF = re.compile(r"(?:[^/]+/)*([\w][\w .+@()=,-]*?)(-[0-9]{5}-of-[0-9]{5})?\.gguf")
_PROJECTOR = "mmproj"  # how image parts begin that lie beside a model's GGUF
_CHUNK = 1 << 20


class HubFile(Struct, frozen=True):
    """``sha256`` of the content, or ``blob``, git's SHA-1 of it, where the hub keeps it in git."""

    name: str
    size: int
    sha256: str = ""
    blob: str = ""


class Repository(Struct, frozen=True):
    """At one commit."""

    name: str
    commit: str
    files: list[HubFile]


def look(name: str, revision: str | None) -> Repository:
    """What there is at a branch, tag or commit. Raises ConfigError in one sentence, as everything here."""
    _set_up()
    with _explained(name, revision):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    if info.sha is None or not info.siblings:
        raise ConfigError(f"{name} is empty")
    files = [
        HubFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else "", one.blob_id or "")
        for one in info.siblings
    ]
    return Repository(name, info.sha, files)


def folder_files(repository: Repository) -> list[HubFile]:
    """Of a folder in the hub's layout, what is small first; empty where it has no safetensors."""
    names = {one.name: one for one in repository.files}
    if _INDEX in names:
        weights = [one for one in repository.files if one.name == _INDEX or _SHARD.fullmatch(one.name)]
    else:
        weights = [names["model.safetensors"]] if "model.safetensors" in names else []
    if not weights:
        return []
    beside = [one for one in repository.files if _BESIDE.fullmatch(one.name)]
    return sorted([*beside, *weights], key=lambda one: (one.name.endswith(".safetensors"), one.name))


def gguf_files(repository: Repository, wanted: str) -> tuple[str, list[HubFile]]:
    """A name for the model, and the one GGUF file or all its parts, by a file's name or a word of it such as
    Q4_K_M; "" where there is only one. Raises ConfigError, listing what there is."""
    found = _groups(repository.files)
    chosen = [stem for stem, files in found.items() if not wanted or _means(wanted, stem, files)]
    if len(chosen) == 1:
        return chosen[0].rpartition("/")[2], found[chosen[0]]
    there = ", ".join(sorted(file.name for files in found.values() for file in files[:1])) or "no GGUF file"
    if not found and not wanted:
        _refuse_weights(repository)
    if chosen and wanted:
        raise ConfigError(f"{repository.name}: {wanted!r} means several files: {', '.join(sorted(chosen))}")
    which = (
        f"no file {wanted!r}; it has" if wanted else f"several models; say which, as {repository.name}:FILE"
    )
    raise ConfigError(f"{repository.name} has {which}: {there}")


def fetch(repository: Repository, file: HubFile, target: Path, progress: Progress) -> None:
    """Make ``target``, which appears when all of it is there and is what the hub has. What was fetched before
    an interruption is gone on with (``target`` + ".part"). Raises ConfigError."""
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as out:
            if (begun := out.tell()) > file.size:
                out.truncate(begun := 0)
            progress.advance(begun)
            with _explained(repository.name, repository.commit, file.name):
                http_get(
                    hf_hub_url(repository.name, file.name, revision=repository.commit),
                    cast(BinaryIO, _Counted(out, progress)),
                    resume_size=begun,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                )
        if not _as_told(part, file):
            part.unlink()
            raise ConfigError(f"{repository.name}: {file.name} arrived damaged; start again")
        part.rename(target)
    except OSError as error:
        what = "no space is left" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ConfigError(f"{target}: cannot be written: {what}") from None


def _set_up() -> None:
    """The library shows no bars and warns of nothing that our own errors tell, says of this host no more than
    its own version, and writes what has come at once: an interruption loses no more than such a piece."""
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK


class _Counted(BufferedIOBase):
    """A file that is written, and tells how far it is; also back, where a server begins anew."""

    def __init__(self, file: BinaryIO, progress: Progress):
        self._file, self._progress = file, progress

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._progress.advance(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def truncate(self, size: int | None = None) -> int:
        before, after = self._file.seek(0, 2), self._file.truncate(size if size is not None else 0)
        self._progress.advance(after - before)
        return after


def _as_told(path: Path, file: HubFile) -> bool:
    kind = hashlib.sha256() if file.sha256 else hashlib.sha1(usedforsecurity=False)
    if not file.sha256:
        kind.update(f"blob {file.size}\0".encode())  # as git does
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            kind.update(chunk)
    told = file.sha256 or file.blob
    return path.stat().st_size == file.size and told in ("", kind.hexdigest())


def _groups(files: Iterable[HubFile]) -> dict[str, list[HubFile]]:
    """GGUF files by their names without ending and number of the part, parts in order."""
    found: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda one: one.name):
        named = _GGUF.fullmatch(file.name)
        if named is not None and not named[1].lower().startswith(_PROJECTOR):
            found.setdefault(file.name[: named.end(1)], []).append(file)
    return found


def _means(wanted: str, stem: str, files: list[HubFile]) -> bool:
    names = {name for one in files for name in (one.name, one.name.rpartition("/")[2])}
    word = rf"(^|[^a-z0-9]){re.escape(wanted.lower())}$"
    return wanted in names or re.search(word, stem.lower()) is not None


def _refuse_weights(repository: Repository) -> NoReturn:
    names = [one.name for one in repository.files]
    pickled = next((name for name in names if name.endswith((".bin", ".pt", ".pth"))), None)
    why = f" (pickled weights such as {pickled} are never loaded: they can run code)" if pickled else ""
    raise ConfigError(f"{repository.name} has neither model.safetensors nor a GGUF file{why}")


@contextmanager
def _explained(name: str, revision: str | None, file: str = "") -> Iterator[None]:
    """The library's errors as sentences. None of them has the token in it."""
    hub = constants.ENDPOINT
    token = "set HF_TOKEN to a token of yours that may read it, or log in with `hf auth login`"
    try:
        yield
    except GatedRepoError:
        raise ConfigError(f"{name} is gated: accept its terms on {hub}/{name}, then {token}") from None
    except RevisionNotFoundError:
        raise ConfigError(f"{name} has no revision {revision!r}; see {hub}/{name}") from None
    except RepositoryNotFoundError:
        raise ConfigError(f"there is no model {name} on {hub}, or it is private: then {token}") from None
    except HFValidationError:
        raise ConfigError(f"{name!r} is no repository; write OWNER/NAME, as {hub} does") from None
    except OfflineModeIsEnabled:
        raise ConfigError(f"{name}: HF_HUB_OFFLINE is set, so {hub} is not asked; unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ConfigError(f"{hub} does not let you read {name} (status {status}): {token}") from None
        if status == 404:
            raise ConfigError(f"{name} has no {file or 'such model'} at {revision or 'main'}") from None
        raise ConfigError(f"{hub} answered with status {status} for {name}; try again later") from None
    except HTTPError as error:
        why = str(error) or type(error).__name__
        raise ConfigError(
            f"cannot reach {hub} ({why}): check the network, or HF_ENDPOINT; the same command goes on with "
            "what has been fetched"
        ) from None
