"""The muxctl command: look at a running muxd, steer and stop it, over its Unix socket; import model files.

Tables for people, ``--json`` for programs. Loads nothing of the daemon.
"""

from pathlib import Path
from typing import Annotated, get_args

import msgspec
import typer

from muxd import __version__, toml
from muxd.cli import (
    bench,
    controls,
    devices,
    events,
    explain,
    installing,
    loading,
    operating,
    plan,
    pulling,
    quality,
    replan,
    simulate,
    tables,
    top,
    workload,
)
from muxd.cli.asking import PROGRAM, Json, Socket, client_at, print_as, show
from muxd.cli.failing import fail, sentences
from muxd.cli.program import Program
from muxd.errors import DaemonUnreachable

_HELP = """Look at a running muxd, steer and stop it; import model files. All that asks muxd takes --json.

--socket PATH may also stand before the command. Exit codes: 0 done; 1 refused or failed, one sentence says
why; 2 wrong usage; 78 a wrong configuration."""

app = Program(PROGRAM, _HELP)


@app.command()
def ps(socket: Socket = "", json: Json = False) -> None:
    """List the daemon's processes."""
    with sentences(PROGRAM):
        client = client_at(socket)
        rows = client.ps()
        show(client, rows, json, tables.processes(rows))


@app.command()
def models(
    socket: Socket = "",
    supported: Annotated[
        bool, typer.Option("--supported", help="The architectures that muxd knows; asks no daemon.")
    ] = False,
    json: Json = False,
) -> None:
    """List the served models: state, memory, queue, latency."""
    if supported:
        from muxd.cli import supported as known  # numpy takes a tenth of a second to load

        listed = known.supported()
        return print_as(listed, json, known.table(listed))
    with sentences(PROGRAM):
        client = client_at(socket)
        rows = client.models()
        show(client, rows, json, tables.models(rows))


@app.command()
def status(
    socket: Socket = "",
    audit: Annotated[
        bool, typer.Option("--audit", help="Check the pool's books; exit 1 if they do not add up.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the daemon as a whole: pool, models, requests."""
    with sentences(PROGRAM):
        client = client_at(socket)
        if not audit:
            now = client.status()
            return show(client, now, json, tables.status(now))
        books = client.audit()
        show(client, books, json, tables.audit(books))
        raise typer.Exit(1 if books.fault else 0)


@app.command()
def stop(
    socket: Socket = "",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for its end.")] = 60.0,
    json: Json = False,
) -> None:
    """Stop the daemon and wait until it is gone. Running streams get its shutdown_grace to end."""
    with sentences(PROGRAM):
        client = client_at(socket)
        pid = client.stop(wait=timeout)
        show(client, {"stopped": pid}, json, f"muxd (pid {pid}) has stopped.")


# In modules of their own; their help texts are their docstrings.
app.command()(explain.why)
app.command()(explain.trace)
app.command()(events.events)
app.command()(top.top)
app.command()(devices.devices)
app.command()(controls.quota)
app.command()(controls.policy)
app.command()(loading.load)
app.command()(loading.unload)
app.command()(loading.sleep)
app.command()(loading.wake)
app.command()(controls.pin)
app.command()(controls.unpin)
app.command()(loading.move)
app.command()(pulling.pull)
app.command()(pulling.rm)
app.command()(replan.replan)
app.command()(operating.reload)
app.command()(operating.drain)
app.command()(operating.logs)
app.command()(operating.keys)
app.command()(operating.completion)
app.command(name="install-service")(installing.install_service)
app.command()(simulate.simulate)
app.command()(plan.plan)
app.command()(quality.quality)
app.command()(bench.bench)
app.command()(workload.workload)


@app.command(name="import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The GGUF file.")],
    name: Annotated[str, typer.Option(help="Name of the new model folder.", metavar="NAME")],
    force: Annotated[bool, typer.Option(help="Replace a folder of that name.")] = False,
    weights: Annotated[
        str,
        typer.Option(
            help="file: the file's blocks stay as they are. bfloat16: what they stand for, which is larger, "
            "and which transformers reads too.",
            metavar="KIND",
        ),
    ] = "file",
    check: Annotated[
        bool, typer.Option("--check", help="Then compare it with float32, as `muxctl quality` does.")
    ] = False,
) -> None:
    """Turn a GGUF file into a model folder under MUXD_HOME."""
    from muxd.cli.importing import import_model  # gguf and numpy take half a second to load
    from muxd.cli.quality import compare, table
    from muxd.importer.convert import Weights

    if weights not in (kinds := get_args(Weights)):
        fail(PROGRAM, f"--weights {weights!r}: must be one of {', '.join(kinds)}", code=2)
    with sentences(PROGRAM):
        folder = import_model(source, name, force=force, weights=msgspec.convert(weights, Weights))
        typer.echo(f"Imported into {folder}. To serve it, add to muxd.toml:\n")
        typer.echo(f'[[model]]\nname = "{name}"\npath = {toml.text(str(folder))}')
        if check:
            typer.echo(f"\n{table(compare(folder))}")


@app.command()
def version(socket: Socket = "", json: Json = False) -> None:
    """Print the versions of muxctl and, where one runs, of the daemon."""
    with sentences(PROGRAM):
        try:
            daemon = client_at(socket).status().version
        except DaemonUnreachable:
            daemon = None
        both = {"muxctl": __version__, "muxd": daemon}
        print_as(both, json, f"muxctl {__version__}\nmuxd   {daemon or 'not running'}")


if __name__ == "__main__":
    app()
