"""The muxctl command: look at a running muxd and stop it, over its Unix socket; import model files.

Tables for people, ``--json`` for programs. Loads nothing of the daemon.
"""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from muxd import __version__
from muxd.admin.client import AdminClient, socket_path
from muxd.cli import tables
from muxd.cli.failing import sentences
from muxd.errors import DaemonUnreachable

_PROGRAM = "muxctl"
_HELP = "Look at a running muxd and stop it; import model files. Every command but import takes --json."

app = typer.Typer(
    name=_PROGRAM, help=_HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Socket = Annotated[
    str,
    typer.Option(
        "--socket",
        envvar="MUXD_SOCKET",
        help="muxd's Unix socket. Default: where muxd puts it.",
        metavar="PATH",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def ps(socket: Socket = "", json: Json = False) -> None:
    """List the daemon's processes."""
    with sentences(_PROGRAM):
        client = _client(socket)
        rows = client.ps()
        _show(client, rows, json, tables.processes(rows))


@app.command()
def models(socket: Socket = "", json: Json = False) -> None:
    """List the served models: state, memory, queue, latency."""
    with sentences(_PROGRAM):
        client = _client(socket)
        rows = client.models()
        _show(client, rows, json, tables.models(rows))


@app.command()
def status(socket: Socket = "", json: Json = False) -> None:
    """Show the daemon as a whole: pool, models, requests."""
    with sentences(_PROGRAM):
        client = _client(socket)
        now = client.status()
        _show(client, now, json, tables.status(now))


@app.command()
def stop(
    socket: Socket = "",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 60.0,
    json: Json = False,
) -> None:
    """Stop the daemon and wait until it is gone. Running streams get its shutdown_grace to end."""
    with sentences(_PROGRAM):
        client = _client(socket)
        pid = client.stop(wait=timeout)
        _show(client, {"stopped": pid}, json, f"muxd (pid {pid}) has stopped.")


@app.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The GGUF file.")],
    name: Annotated[str, typer.Option(help="Name of the new model folder.", metavar="NAME")],
    force: Annotated[bool, typer.Option(help="Replace a folder of that name.")] = False,
) -> None:
    """Turn a GGUF file into a model folder under MUXD_HOME."""
    from muxd.cli.importing import import_model  # gguf and numpy take half a second to load

    with sentences(_PROGRAM):
        folder = import_model(source, name, force=force)
        typer.echo(f"Imported into {folder}. To serve it, add to muxd.toml:\n")
        typer.echo(f'[[model]]\nname = "{name}"\npath = {_toml_string(str(folder))}')


@app.command()
def version(socket: Socket = "", json: Json = False) -> None:
    """Print the versions of muxctl and, where one runs, of the daemon."""
    with sentences(_PROGRAM):
        try:
            daemon = _client(socket).status().version
        except DaemonUnreachable:
            daemon = None
        both = {"muxctl": __version__, "muxd": daemon}
        _print(both, json, f"muxctl {__version__}\nmuxd   {daemon or 'not running'}")


def _client(socket: str) -> AdminClient:
    return AdminClient(socket_path(socket))


def _show(client: AdminClient, value: object, json: bool, text: str) -> None:
    _print(value, json, text)
    if client.daemon_version not in (None, __version__):
        typer.echo(f"{_PROGRAM}: this is {__version__}, the daemon is {client.daemon_version}", err=True)


def _print(value: object, json: bool, text: str) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value)).decode() if json else text)


def _toml_string(text: str) -> str:
    return msgspec.json.encode(text).decode()  # a JSON string is a TOML basic string


if __name__ == "__main__":
    app()
