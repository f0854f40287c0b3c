"""The muxd command: serve, check a configuration, fetch the demo models.

Settings come from flags, then MUXD_* environment variables, then the file, then defaults.
"""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from muxd import __version__
from muxd.admin.schemas import AdminService
from muxd.cli import doctor, logs, profile, ready
from muxd.cli.failing import EX_CONFIG, fail, sentences
from muxd.cli.program import Program
from muxd.config import Config, home
from muxd.config_load import load

_PROGRAM = "muxd"
_HELP = """Serve many LLMs from one host, with one memory pool and one scheduler.

Settings come from flags, then MUXD_* environment variables, then the file, then defaults."""

app = Program(_PROGRAM, _HELP)


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Option(envvar="MUXD_CONFIG", help="The configuration.", metavar="muxd.toml")
    ] = None,
    host: Annotated[str | None, typer.Option(help="HTTP address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port (default: 8000); 0 takes a free one.")] = None,
    socket: Annotated[str | None, typer.Option(help="Unix socket for muxctl.", metavar="PATH")] = None,
    pool_bytes: Annotated[
        str | None, typer.Option(help="KV memory all models share (default: auto).", metavar="SIZE")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error (default: info).")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text, logfmt or json (default: text).")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Fetch two small models and serve them.")] = False,
) -> None:
    """Serve the models of a configuration until SIGTERM, Ctrl-C or `muxctl stop`. SIGHUP reads it again."""
    flags = {
        "server.host": host,
        "server.port": port,
        "server.socket": socket,
        "server.log_level": log_level,
        "server.log_format": log_format,
        "pool.bytes": pool_bytes,
    }
    with sentences(_PROGRAM, config_code=EX_CONFIG):
        file = _file(config, demo)
        given = {key: value for key, value in flags.items() if value is not None}
        settings = load(file, flags=given)
        logs.set_up(settings.server.log_level, settings.server.log_format)
        code = _run(settings, file, given)
    raise typer.Exit(code)


@app.command(name="fetch-demo")
def fetch_demo() -> None:
    """Fetch the demo models into MUXD_HOME, if they are not there, and write a configuration for them."""
    with sentences(_PROGRAM, config_code=EX_CONFIG):
        typer.echo(f"muxd serve --config {_demo_file()}")


@app.command(name="new-key")
def new_key(
    name: Annotated[str, typer.Argument(help="What logs and metrics call it.", metavar="NAME")],
) -> None:
    """Make an API key. Its table for the file of server.keys goes to standard output, the key itself, which
    nobody can find out later, to standard error."""
    from muxd.api.keys import new_key, table

    with sentences(_PROGRAM, config_code=EX_CONFIG):
        key = new_key()
        typer.echo(table(name, key), nl=False)
    typer.echo(f"the key, shown this once: {key}", err=True)


@app.command(name="check-config")
def check_config(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Check a configuration and the model folders it names; exit 78 if something is wrong."""
    with sentences(_PROGRAM, config_code=EX_CONFIG):
        settings = load(file)
        broken = _broken_models(settings)
    for sentence in broken:
        typer.echo(f"{_PROGRAM}: {sentence}", err=True)
    if broken:
        raise typer.Exit(EX_CONFIG)
    names = ", ".join(model.name for model in settings.model) or "no models"
    pools = [f"{one.pool} on {one.name}" if settings.device else one.pool for one in settings.devices]
    typer.echo(f"{file} is fine: {names}; {'pool' if len(pools) == 1 else 'pools'}: {', '.join(pools)}.")


app.command()(profile.profile)
app.command()(doctor.doctor)


@app.command()
def version() -> None:
    """Print muxd's version."""
    typer.echo(f"muxd {__version__}")


def _file(config: Path | None, demo: bool) -> Path:
    if demo == (config is not None):
        fail(_PROGRAM, "say what to serve: either --config muxd.toml, or --demo for two small models", code=2)
    return config or _demo_file()


def _demo_file() -> Path:
    """Fetch what is missing; returns the configuration, which is written anew each time."""
    from muxd.cli.progress import reporter
    from muxd.importer.demo import demo_config, fetch_demo

    with reporter() as progress:
        fetch_demo(home(), progress)
    file = home() / "demo.toml"
    partial = file.with_suffix(".new")
    partial.write_text(demo_config(home()))
    partial.replace(file)
    return file


def _broken_models(settings: Config) -> list[str]:
    from muxd.api.texts import text_pool
    from muxd.fleet.catalog import Entry  # the reading of folders that the daemon itself does

    entries = [Entry(model, settings.adapters(model.name)) for model in settings.bases]

    async def read() -> None:
        texts = text_pool(settings.text)
        texts.start()
        try:
            for entry in entries:
                await entry.read(texts)
        finally:
            await texts.close()

    asyncio.run(read())
    refused = [why for entry in entries if entry.opened for why in entry.opened.loras.refused.values()]
    return [*(entry.error for entry in entries if entry.error), *refused]


def _run(settings: Config, file: Path, flags: dict[str, Any]) -> int:
    from muxd.cli.progress import Loading
    from muxd.daemon import run  # here, so that --help and a wrong setting answer at once
    from muxd.fleet.reloader import Source

    with Loading() as loading:

        def announce(service: AdminService) -> None:
            loading.stop()
            typer.echo(ready.banner(service.status().address, service.models()))

        return run(settings, announce, loading.report, Source(file, flags))


if __name__ == "__main__":
    app()
