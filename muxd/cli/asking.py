"""What the commands of muxctl that ask a daemon share: options, the client, how an answer is printed."""

from typing import Annotated

import msgspec
import typer

from muxd import __version__
from muxd.admin.client import AdminClient, socket_path

PROGRAM = "muxctl"

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


def client_at(socket: str) -> AdminClient:
    return AdminClient(socket_path(socket))


def show(client: AdminClient, value: object, json: bool, text: str) -> None:
    """The answer, and a word on standard error where the daemon's version is another one."""
    print_as(value, json, text)
    warn_of_version(client)


def print_as(value: object, json: bool, text: str) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value)).decode() if json else text)


def warn_of_version(client: AdminClient) -> None:
    if client.daemon_version not in (None, __version__):
        typer.echo(f"{PROGRAM}: this is {__version__}, the daemon is {client.daemon_version}", err=True)
