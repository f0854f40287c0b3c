"""``muxctl import``: from a GGUF file and a name to a folder in MUXD_HOME/models. Used by muxctl."""

import os
import re
from pathlib import Path

from muxd.cli.progress import reporter
from muxd.config import home
from muxd.errors import ConfigError
from muxd.importer.convert import Weights, import_gguf
from muxd.importer.progress import Progress
from muxd.importer.staging import scratch


def model_folder(name: str) -> Path:
    """Where an imported model of that name lives.

    Raises ConfigError unless the name is letters, digits, ``_``, ``-`` and ``.``, beginning with a letter or
    digit: then it is one visible path component and cannot lead anywhere else.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise ConfigError(
            f"--name {name!r} is not a model name: use letters, digits, '_', '-' and '.', "
            "beginning with a letter or digit"
        )
    return home() / "models" / name


def import_model(source: Path, name: str, *, force: bool = False, weights: Weights = "file") -> Path:
    """Import ``source``, with a progress report, and return the new folder.

    Raises ConfigError for a bad name or a folder that exists and no ``force``; ModelFolderError for a file
    that cannot be imported, which leaves an existing folder as it was.
    """
    target = model_folder(name)
    if os.path.lexists(target) and not force:
        raise ConfigError(f"{target} already exists; choose another --name, or replace it with --force")
    with reporter() as progress:
        if os.path.lexists(target):
            _replace(source, target, progress, weights)
        else:
            import_gguf(source, target, progress=progress, weights=weights)
    return target


def _replace(source: Path, target: Path, progress: Progress, weights: Weights) -> None:
    """The old folder goes only when the new one is complete; on any error it stays."""
    with scratch(target.parent, target.name) as room:
        # One folder deeper: the importer locks the parent of what it writes, and ``room`` is locked here.
        new, old = room / "import" / "new", room / "old"
        import_gguf(source, new, progress=progress, weights=weights)
        os.rename(target, old)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(old, target)
            raise
