"""``muxctl replan``: where the models should be by what they are asked for now, and bring them there."""

from typing import Annotated

import typer

from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show
from muxd.cli.failing import sentences
from muxd.cli.tables import render
from muxd.fleet.proposal import Proposal

_WHY = {
    "adopt": "it pays",
    "same": "the models are where they should be",
    "small gain": "it would gain too little",
    "moves cost more": "the moves would cost more than is gained",
    "does not fit": "the better plan does not fit",
    "cooldown": "the last change was a moment ago",
}


def replan(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Plan anew by the rates measured now, and move models where it pays. Neither `cooldown` nor `least_gain`
    counts, as they do for the plans that muxd makes by itself."""
    with sentences(PROGRAM):
        client = client_at(socket)
        found = client.replan(dry_run=dry_run)
        show(client, found, json, shown(found, dry_run))


def shown(found: Proposal, dry_run: bool) -> str:
    """Every model with its present and proposed device, then gain, cost and what comes of it."""
    rows = [
        [row.model, f"{row.rate:.3g}/s", _tokens(row.prompt), _tokens(row.output), row.present,
         row.proposed if row.proposed != row.present else "", "pinned" if row.pinned else ""]
        for row in found.rows
    ]  # fmt: skip
    table = render(("MODEL", "RATE", "PROMPT", "ANSWER", "NOW", "PROPOSED", ""), rows)
    if found.adopt:
        done = "would move" if dry_run else "moved, or failed to (muxctl events)"
        last = f"{', '.join(found.moves)}: {done}; {_WHY['adopt']}"
    else:
        last = f"nothing moves: {_WHY.get(found.reason, found.reason)}"
    return f"{table}\n\ngain   {found.gain:.3g} requests/s\ncost   {found.cost:.3g} requests\n{last}"


def _tokens(mean: float) -> str:
    return f"{mean:.0f}" if mean else "-"
