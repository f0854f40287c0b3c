"""``muxctl pull`` and ``rm``: model folders of MUXD_HOME/models from the Hugging Face hub, and away again."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer

from muxd.admin.client import AdminClient
from muxd.admin.schemas import LoadModel
from muxd.cli.asking import PROGRAM, Socket, client_at
from muxd.cli.failing import fail, sentences
from muxd.cli.loading import follow
from muxd.cli.tables import size
from muxd.config import ModelConfig
from muxd.config_load import load as read_config
from muxd.errors import ConfigError, DaemonUnreachable

_SOURCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>.+))?")


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="OWNER/NAME[:FILE]",
            help="A model of the hub; of one with GGUF files which, by its name or a word such as Q4_K_M.",
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the new folder. Default: the repository's or file's.")
    ] = "",
    revision: Annotated[
        str, typer.Option(metavar="REV", help="Branch, tag or commit. Default: the newest.")
    ] = "",
    weights: Annotated[
        str, typer.Option(metavar="KIND", help="Of a GGUF, as `muxctl import --weights`: file or bfloat16.")
    ] = "file",
    load: Annotated[bool, typer.Option("--load", help="Have muxd serve it by that name, too.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="With --load: also after a restart.")] = False,
    socket: Socket = "",
) -> None:
    """Fetch a model from the Hugging Face hub into MUXD_HOME. Interrupted, it goes on where it was.

    A token is taken from HF_TOKEN or `hf auth login`; HF_ENDPOINT names a mirror.
    """
    with sentences(PROGRAM):
        named = _SOURCE.fullmatch(source)
        if named is None:
            fail(PROGRAM, f"{source!r} is no model of the hub; write OWNER/NAME or OWNER/NAME:FILE", code=2)
        if keep and not load:
            fail(PROGRAM, "--keep goes with --load", code=2)
        folder = _pulled(named["repo"], named["file"] or "", name, revision, weights)
        if not load:
            typer.echo(_how_to_serve(folder))
            return
        client = client_at(socket)
        follow(client.load(LoadModel(ModelConfig(folder.name, str(folder)), keep=keep)))
        typer.echo(f"{folder.name} is ready{', and stays over a restart' if keep else ''}.")


def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A folder of MUXD_HOME/models.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    socket: Socket = "",
) -> None:
    """Delete a model folder that was pulled or imported, and what an interrupted pull has left of it."""
    from muxd.cli.importing import model_folder
    from muxd.importer.staging import scratch, unfinished

    with sentences(PROGRAM):
        folder = model_folder(name)
        there = [path for path in (folder, unfinished(folder)) if os.path.lexists(path)]
        if not there:
            known = ", ".join(sorted(_folders(folder.parent))) or "none"
            raise ConfigError(f"there is no {folder}; there are: {known}")
        asked = _check_unused(client_at(socket), folder)
        if not yes:
            if not sys.stdin.isatty():
                fail(PROGRAM, "nobody is here to be asked: say --yes", code=2)
            bytes_ = sum(map(_bytes, there))
            typer.confirm(f"{asked}Delete {folder} ({size(bytes_)})?", abort=True)
        with scratch(folder.parent, name) as room:
            for number, path in enumerate(there):
                os.rename(path, room / str(number))  # first its name goes: nothing half deleted has one
        typer.echo(f"{folder} is deleted.")


def _pulled(repo: str, file: str, name: str, revision: str, weights: str) -> Path:
    from muxd.cli.importing import model_folder
    from muxd.cli.progress import reporter
    from muxd.importer.convert import Weights  # gguf and the hub's library take a second to load
    from muxd.importer.hub import folder_files, gguf_files, look
    from muxd.importer.pull import pull_folder, pull_gguf, pulled

    if weights not in (kinds := get_args(Weights)):
        fail(PROGRAM, f"--weights {weights!r}: must be one of {', '.join(kinds)}", code=2)
    repository = look(repo, revision or None)
    files = [] if file else folder_files(repository)
    stem, gguf = ("", []) if files else gguf_files(repository, file)
    target = model_folder(name or stem or repo.partition("/")[2])
    if pulled(target, repository, files or gguf):
        return target
    if os.path.lexists(target):
        raise ConfigError(
            f"{target} is there already; choose another --name, or delete it with `muxctl rm {target.name}`"
        )
    with reporter() as progress:
        if files:
            pull_folder(repository, files, target, progress)
        else:
            pull_gguf(repository, gguf, target, progress, msgspec.convert(weights, Weights))
    return target


def _how_to_serve(folder: Path) -> str:
    return (
        f"{folder} is there. To serve it: {PROGRAM} load --name {folder.name} --path {folder}\n"
        "or with --keep also after a restart."
    )


def _check_unused(client: AdminClient, folder: Path) -> str:
    """What the operator should know. Raises ConfigError where the folder is served, or is to be."""
    try:
        models, file = client.models(), client.status().config
    except DaemonUnreachable:
        return "No muxd runs that could say whether its configuration names it. "
    for row in models:
        if row.state != "unloaded" and _within(Path(row.config.path), folder):
            raise ConfigError(
                f"{folder} is {row.name}'s, which is {row.state}: `muxctl unload {row.name}` first"
            )
    for model in read_config(Path(file)).model if file else []:
        if _within(Path(model.path), folder):
            raise ConfigError(
                f"{folder} is {model.name}'s, which {file} or a file beside it names: take it out there, or "
                f"`muxctl unload {model.name} --keep`"
            )
    return ""


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _folders(models: Path) -> Iterator[str]:
    if models.is_dir():
        yield from (one.name for one in models.iterdir() if not one.name.startswith("."))


def _bytes(path: Path) -> int:
    """Of a link, its own: what it leads to stays."""
    return sum(one.lstat().st_size for one in (path, *(path.rglob("*") if not path.is_symlink() else ())))
