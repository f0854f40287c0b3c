"""How both programs end when something is wrong: one sentence on standard error and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from muxd.errors import ConfigError, MuxdError

EX_CONFIG = 78  # sysexits.h: "configuration error"; systemd must not restart a daemon that exits with it


@contextmanager
def sentences(program: str, *, config_code: int = 1) -> Iterator[None]:
    """Turn what muxd can explain into a sentence and an exit: ``config_code`` for a wrong setting, else 1.

    Anything else is a defect and keeps its traceback.
    """
    try:
        yield
    except ConfigError as error:
        fail(program, error.message, code=config_code)
    except (MuxdError, TimeoutError) as error:
        fail(program, str(error))


def fail(program: str, message: str, *, code: int = 1) -> NoReturn:
    """Print ``program: message`` and exit. Raises typer.Exit."""
    typer.echo(f"{program}: {message}", err=True)
    raise typer.Exit(code)
