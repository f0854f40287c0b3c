"""``muxctl install-service``: muxd as a service of this machine's systemd, or of one user's.

Files only: what is to be run afterwards is printed, so that nothing starts that nobody has looked at.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from muxd import whole
from muxd.cli.asking import PROGRAM
from muxd.cli.failing import fail, sentences

UNITS = Path(__file__).with_name("systemd")
_PROGRAM, _CONFIG = "/opt/muxd/bin/muxd", {False: "/etc/muxd/muxd.toml", True: "%E/muxd/muxd.toml"}
_SYSTEM = {
    "muxd.service": "etc/systemd/system/muxd.service",
    "muxd.socket": "etc/systemd/system/muxd.socket",
    "sysusers.conf": "etc/sysusers.d/muxd.conf",
    "tmpfiles.conf": "etc/tmpfiles.d/muxd.conf",
}
_AFTERWARDS = {
    False: ["systemd-sysusers", "systemd-tmpfiles --create", "systemctl daemon-reload",
            "systemctl enable --now muxd"],
    True: ["systemctl --user daemon-reload", "systemctl --user enable --now muxd"],
}  # fmt: skip


class File(NamedTuple):
    path: Path
    text: str


def install_service(
    user: Annotated[bool, typer.Option("--user", help="For the user who asks, without root.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="muxd.toml",
            help="What it serves. Default: /etc/muxd/muxd.toml; with --user ~/.config/muxd/muxd.toml.",
        ),
    ] = None,
    root: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Write below it, for a package or an image.")
    ] = Path("/"),
) -> None:
    """Write systemd's files for the muxd that this muxctl belongs to, and say what to run then. Files of an
    earlier muxd are replaced; drop-ins of `systemctl edit` stay."""
    with sentences(PROGRAM):
        program = Path(sys.executable).with_name("muxd")
        files = units(program, config.absolute() if config else None, user=user, root=root)
        for file in files:
            _write(file)
            typer.echo(f"wrote {file.path}")
        for doubt in doubts(program, config, user=user):
            typer.echo(f"{PROGRAM}: {doubt}", err=True)
        typer.echo("\nNow run:")
        for command in _AFTERWARDS[user]:
            typer.echo(f"  {command}")


def units(
    program: Path,
    config: Path | None,
    *,
    user: bool,
    root: Path = Path("/"),
    env: Mapping[str, str] = os.environ,
) -> list[File]:
    """The files with the program and the configuration that they are for."""

    def text(name: str) -> str:
        written = (UNITS / name).read_text().replace(_PROGRAM, _escaped(program))
        return written.replace(_CONFIG[user], _escaped(config)) if config else written

    if not user:
        return [File(root / path, text(name)) for name, path in _SYSTEM.items()]
    folder = Path(env.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return [File(root / folder.relative_to("/") / "systemd/user/muxd.service", text("user/muxd.service"))]


def doubts(program: Path, config: Path | None, *, user: bool) -> list[str]:
    """What is likely to keep the service from starting."""
    found = []
    if not program.exists():
        found.append(f"{program} is not there: install muxd into the environment of this muxctl")
    if not user and (closed := _closed_to_others(program)) is not None:
        found.append(
            f"{closed} is closed to others, so the user muxd cannot run {program}; install muxd elsewhere, "
            "such as into /opt/muxd (python3 -m venv /opt/muxd)"
        )
    wanted = config or Path(_CONFIG[user].replace("%E", str(Path.home() / ".config")))
    if not wanted.exists():
        found.append(f"{wanted} is not there yet; muxd.example.toml has all settings")
    return found


def _closed_to_others(path: Path) -> Path | None:
    """The first folder on the way that only its owner may enter."""
    for folder in reversed(path.resolve().parents):
        if folder.exists() and not folder.stat().st_mode & 0o001:
            return folder
    return None


def _escaped(path: Path) -> str:
    """systemd's quoting: "%" begins a specifier, a space ends a word. systemd.service(5), "Command lines"."""
    text = str(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if any(one.isspace() or one in "\"'\\;" for one in text) else text


def _write(file: File) -> None:
    try:
        whole.write(file.path, file.text.encode())
        file.path.chmod(0o644)
    except OSError as error:
        hint = "; as root, or with --user" if isinstance(error, PermissionError) else ""
        fail(PROGRAM, f"cannot write {file.path}: {error.strerror or error}{hint}")
