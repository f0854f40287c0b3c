"""``muxd doctor``: what this host can do for muxd, line by line, as the checks answer."""

import json as text_json
from typing import Annotated

import msgspec
import typer

from muxd.doctor.finding import Finding

_WIDTH = 10  # of the state and the indentation below it


def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="A GPU is to be used: without one, exit with 1.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Check what muxd needs on this host: what is there, what is missing, what it means, what to do.

    Exit code 1 when something needed is missing.
    """
    from muxd.doctor.run import examine, report  # numpy: not for every --help

    findings = []
    for finding in examine(gpu=gpu):
        findings.append(finding)
        if not json:
            typer.echo(line(finding))
    whole = report(findings)
    if json:
        typer.echo(text_json.dumps(msgspec.to_builtins(whole), indent=2, ensure_ascii=False))
    raise typer.Exit(whole.exit_code)


def line(finding: Finding) -> str:
    """State, check and what was found; below it what that means, and what to do."""
    mark = "needed!" if finding.fatal else finding.state
    rows = [f"{mark:<{_WIDTH}}{finding.check}: {_plain(finding.found)}", " " * _WIDTH + finding.meaning]
    if finding.todo and finding.state != "ok":
        rows.append(" " * _WIDTH + "do: " + finding.todo)
    return "\n".join(rows)


def _plain(text: str) -> str:
    """Without control characters: the words of a driver or a log."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
