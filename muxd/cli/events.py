"""``muxctl events``: what muxd decided, when and why."""

from datetime import datetime
from typing import Annotated

import msgspec
import typer

from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show, warn_of_version
from muxd.cli.failing import sentences
from muxd.cli.tables import clean, render
from muxd.fleet.events import Event


def events(
    model: Annotated[str, typer.Option(metavar="MODEL", help="Only what is about this model.")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens now.")] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Show decisions: loads, moves, plans, workers lost, changes by operators. The last 2,000 are kept."""
    with sentences(PROGRAM):
        client = client_at(socket)
        if not follow:
            found = client.events(model)
            return show(client, found, json, table(found))
        for one in client.follow(model):
            typer.echo(msgspec.json.encode(one) if json else line(one))
        warn_of_version(client)


def table(found: list[Event]) -> str:
    several = any(one.device for one in found)
    headers = ("TIME", "EVENT", "MODEL", *(["DEVICE"] if several else []), "DETAIL")
    return render(headers, [_cells(one, several) for one in found])


def line(one: Event) -> str:
    """One event without a table around it."""
    return "   ".join(clean(cell) for cell in _cells(one, bool(one.device)) if cell)


def _cells(one: Event, several: bool) -> list[str]:
    when = datetime.fromtimestamp(one.time).strftime("%Y-%m-%d %H:%M:%S")
    return [when, one.kind, one.model or "-", *([one.device or "-"] if several else []), one.detail]
