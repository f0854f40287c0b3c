"""``muxctl reload``, ``drain``, ``logs`` and ``keys``: what an operator does with a daemon that runs."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from muxd.admin.schemas import Drained, KeyInfo
from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show, warn_of_version
from muxd.cli.failing import sentences
from muxd.cli.tables import clean, render
from muxd.fleet.log_lines import LogLine


def reload(socket: Socket = "", json: Json = False) -> None:
    """Have muxd read its configuration again, as SIGHUP does, and wait for what comes of it; exit 1 if it is
    refused, or not all of it can be had."""
    with sentences(PROGRAM):
        client = client_at(socket)
        came = client.reload()
        show(client, came, json, came.summary)
        raise typer.Exit(0 if came.ok else 1)


def drain(
    end: Annotated[bool, typer.Option("--end", help="Take requests again.")] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Have muxd take no new requests, and wait until all are answered. /health says 503, so that a load
    balancer looks elsewhere. Models stay loaded; Ctrl-C ends the waiting alone."""
    with sentences(PROGRAM):
        client = client_at(socket)
        last = _drained(client.drain(end=end), quiet=json)
        if last.taking == "ok":
            return show(client, last, json, "muxd takes requests.")
        what = f"`{PROGRAM} drain --end` has muxd take new ones, `{PROGRAM} stop` ends it"
        show(client, last, json, f"All requests are answered: {what}.")


def _drained(said: Iterable[Drained], *, quiet: bool) -> Drained:
    last = Drained("stopping", 0)
    for last in said:
        if last.taking == "draining" and last.left and not quiet:
            typer.echo(f"{last.left} left", err=True)
    return last


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is logged now.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the newest to begin with.")
    ] = 100,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Show the daemon's log, wherever else it goes. The last 2,000 lines are kept."""
    with sentences(PROGRAM):
        client = client_at(socket)
        kept = client.logs()
        shown = kept[max(0, len(kept) - lines) :]
        if not follow:
            return show(client, shown, json, "\n".join(map(line, shown)))
        first = shown[0].number if shown else (kept[-1].number + 1 if kept else 0)
        for one in client.follow_logs():
            if one.number >= first:
                typer.echo(msgspec.json.encode(one) if json else line(one))
        warn_of_version(client)


def line(one: LogLine) -> str:
    """A traceback keeps its lines; whatever could rewrite the terminal goes."""
    when = datetime.fromtimestamp(one.time).strftime("%Y-%m-%d %H:%M:%S")
    return "\n".join(clean(part) for part in f"{when} {one.level.upper():<7} {one.text}".splitlines())


def keys(socket: Socket = "", json: Json = False) -> None:
    """List the API keys of `server.keys`: what each may do. `muxd new-key` makes one, deleting its table ends
    it; both take effect within a second."""
    with sentences(PROGRAM):
        client = client_at(socket)
        rows = client.keys()
        show(client, rows, json, keys_table(rows))


def keys_table(rows: list[KeyInfo]) -> str:
    cells = [
        [row.name, ", ".join(row.models), "yes" if row.actions else "no",
         str(row.max_concurrency or "-"), f"{row.weight:g}"]
        for row in rows
    ]  # fmt: skip
    return render(("KEY", "MODELS", "ACTIONS", "AT ONCE", "WEIGHT"), cells)


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print a script that has the shell complete muxctl's commands and options: `source <(muxctl completion
    bash)`."""
    from typer._completion_shared import get_completion_script

    from muxd.cli.failing import fail

    if shell not in ("bash", "zsh", "fish"):
        fail(PROGRAM, f"SHELL: {shell!r} must be bash, zsh or fish", code=2)
    typer.echo(get_completion_script(prog_name=PROGRAM, complete_var="_MUXCTL_COMPLETE", shell=shell))
