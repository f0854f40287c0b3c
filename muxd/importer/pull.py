"""``pull``: a repository of the hub in, one model folder out.

What was fetched stays, hidden beside the folder, until the whole is there: an interrupted pull goes on where
it was and leaves nothing that looks like a model.
"""

import shutil
from pathlib import Path

import msgspec

from muxd.errors import ConfigError, ModelFolderError
from muxd.importer.convert import Weights, import_gguf
from muxd.importer.hub import HubFile, Repository, fetch
from muxd.importer.progress import Progress
from muxd.importer.staging import resumed
from muxd.models.spec import read_spec

ORIGIN = "pull.json"  # in the folder: where it is from


def pull_folder(repository: Repository, files: list[HubFile], target: Path, progress: Progress) -> None:
    """Files in the hub's layout, as they are. Raises ConfigError, and ModelFolderError before any weights are
    fetched where config.json asks for what is not computed here."""
    with resumed(target, _key(repository)) as room:
        _begin(files, room, progress, f"Downloading {repository.name}")
        for file in files:
            if file.name.endswith(".safetensors"):
                _check(repository, room)
            _fetch(repository, file, room / file.name, progress)
        progress.finish()
        (room / ORIGIN).write_bytes(origin(repository, files))


def pull_gguf(
    repository: Repository, files: list[HubFile], target: Path, progress: Progress, weights: Weights
) -> None:
    """A GGUF file or all its parts, imported. Raises ConfigError, ModelFolderError where it cannot be."""
    with resumed(target, _key(repository), publish=False) as room:
        names = [room / file.name.rpartition("/")[2] for file in files]
        _begin(files, room, progress, f"Downloading {names[0].name}")
        for file, path in zip(files, names, strict=True):
            _fetch(repository, file, path, progress)
        progress.finish()
        extras = {ORIGIN: origin(repository, files)}
        try:
            import_gguf(names[0], target, progress=progress, extras=extras, weights=weights)
        except ModelFolderError as error:
            kept = f"the file stays there, and `muxctl rm {target.name}` deletes it"
            raise ModelFolderError(f"{error.message}; {kept}") from None


def origin(repository: Repository, files: list[HubFile]) -> bytes:
    """By which a folder is known again."""
    said = {"repository": repository.name, "commit": repository.commit, "files": [one.name for one in files]}
    return msgspec.json.format(msgspec.json.encode(said)) + b"\n"


def pulled(target: Path, repository: Repository, files: list[HubFile]) -> bool:
    """The folder is just that already."""
    file = target / ORIGIN
    return file.is_file() and file.read_bytes() == origin(repository, files)


def _key(repository: Repository) -> str:
    return f"{repository.name}@{repository.commit}"


def _check(repository: Repository, room: Path) -> None:
    """Once config.json is there, and before what is large. Raises ModelFolderError."""
    try:
        read_spec(room)
    except ModelFolderError as error:
        shutil.rmtree(room, ignore_errors=True)  # another try would end like this one
        raise ModelFolderError(error.message.replace(str(room), repository.name)) from None


def _begin(files: list[HubFile], room: Path, progress: Progress, label: str) -> None:
    """Raises ConfigError where what is missing does not fit."""
    there = sum(path.stat().st_size for path in room.rglob("*") if path.is_file())
    needed = max(0, sum(file.size for file in files) - there)
    free = shutil.disk_usage(room).free
    if needed > free:
        raise ConfigError(
            f"{room.parent}: no space: {needed / (1 << 20):.1f} MiB are needed, "
            f"{free / (1 << 20):.1f} MiB are free"
        )
    progress.start(sum(file.size for file in files), label)


def _fetch(repository: Repository, file: HubFile, path: Path, progress: Progress) -> None:
    if path.is_file() and path.stat().st_size == file.size:
        progress.advance(file.size)  # it got its name when it was whole
    else:
        fetch(repository, file, path, progress)
