"""``muxctl load``, ``unload``, ``move``, ``sleep`` and ``wake``: models in and out of a running muxd, and to
another device. All wait for the end.

Ctrl-C ends the waiting, not what was begun: `muxctl models` tells how it went.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

from muxd.admin.schemas import LoadModel, MoveModel, SleepModel, UnloadModel, WakeModel
from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show
from muxd.cli.failing import fail, sentences
from muxd.config import ModelConfig, home
from muxd.errors import MuxdError
from muxd.fleet.steps import Step
from muxd.messages import DtypeName, KvDtype

_WORDS = {
    "draining": "waits for the answers it still owes",
    "stopping": "stops",
    "unloaded": "is unloaded",
    "reading": "reads its folder",
    "weights": "loads weights",
    "starting": "starts its worker",
    "ready": "is ready",
    "moved": "has moved",
    "asleep": "is asleep",
}


def load(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="A model that is unloaded or failed.")] = "",
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of a model that is not in muxd.toml.")] = "",
    path: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Its folder; with --name. Default: MUXD_HOME/models/NAME."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(metavar="TYPE", help="auto (as the folder), bfloat16, float16 or float32; with --name."),
    ] = "auto",
    kv_dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of K and V: auto (as --dtype) or fp8; with --name.")
    ] = "auto",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where to, of several. Default: as the plan says.")
    ] = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Also after a restart: muxd writes muxd.d/NAME.toml.")
    ] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Load a model and wait until it is ready. Without --keep one that muxd.toml does not name is forgotten
    when muxd ends."""
    with sentences(PROGRAM):
        client = client_at(socket)
        wanted = replace(_wanted(model, name, path, dtype, kv_dtype, device), keep=keep)
        last = follow(client.load(wanted))
        show(client, last, json, f"{wanted.name} is ready{', and stays over a restart' if keep else ''}.")


def unload(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to serve no more.")],
    now: Annotated[bool, typer.Option("--now", help="Its running requests fail.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Also after a restart: the file of `load --keep` goes.")
    ] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Unload a model: refuse new requests, answer the running ones, give its memory back."""
    with sentences(PROGRAM):
        client = client_at(socket)
        last = follow(client.unload(UnloadModel(model, now, keep)))
        show(client, last, json, f"{model} is unloaded; `{PROGRAM} load {model}` brings it back.")


def sleep(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that is to give up its place.")],
    now: Annotated[bool, typer.Option("--now", help="Its running answers go on when it wakes.")] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Have a model sleep: its weights leave the device, and who asks for it wakes it."""
    with sentences(PROGRAM):
        client = client_at(socket)
        last = follow(client.sleep(SleepModel(model, now)))
        show(client, last, json, f"{model} is asleep; a request or `{PROGRAM} wake {model}` wakes it.")


def wake(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that is asleep.")],
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Wake a model that sleeps, and wait until it is ready."""
    with sentences(PROGRAM):
        client = client_at(socket)
        show(client, follow(client.wake(WakeModel(model))), json, f"{model} is ready.")


def move(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to move.")],
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Where to: cuda:1, cpu:0.")],
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Move a model to another device while it serves; running answers end where they are."""
    with sentences(PROGRAM):
        client = client_at(socket)
        last = follow(client.move(MoveModel(model, device)))
        show(client, last, json, f"{model} is on {device}.")


def follow(steps: Iterator[Step]) -> Step:
    """Show every step on standard error, at a terminal only; returns the last."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    quiet = not sys.stderr.isatty()
    last: Step | None = None
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=quiet) as bars:
        task = bars.add_task("", total=None)
        for last in steps:
            bytes_known = last.stage in ("weights", "starting")
            bars.update(
                task,
                description=f"{last.model} {_WORDS[last.stage]}",
                completed=last.done if bytes_known else 0,
                total=last.total if bytes_known else None,
            )
    if last is None:
        raise MuxdError("muxd said nothing")
    return last


def _wanted(model: str, name: str, path: Path | None, dtype: str, kv_dtype: str, device: str) -> LoadModel:
    """Raises typer.Exit where the arguments do not go together."""
    if name and path is None and (pulled := home() / "models" / name).is_dir():
        path = pulled
    if (model and (name or path)) or (not model and not (name and path)):
        fail(PROGRAM, "say which model: muxctl load MODEL, or muxctl load --name NAME --path FOLDER", code=2)
    if model:
        return LoadModel(model, device=device)
    assert path is not None
    kinds: dict[str, DtypeName] = {kind: kind for kind in get_args(DtypeName)}
    if dtype not in kinds:
        fail(PROGRAM, f"--dtype {dtype!r} is none of {', '.join(kinds)}", code=2)
    kv_kinds: dict[str, KvDtype] = {"auto": "auto", "fp8": "fp8"}
    if kv_dtype not in kv_kinds:
        fail(PROGRAM, f"--kv-dtype {kv_dtype!r} is none of {', '.join(kv_kinds)}", code=2)
    folder = str(path.expanduser().absolute())
    return LoadModel(ModelConfig(name, folder, dtype=kinds[dtype], kv_dtype=kv_kinds[kv_dtype]), device)
