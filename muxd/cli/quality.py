"""``muxctl quality`` and ``muxctl import --check``: what a format of a model's weights costs in quality.

``python -m muxd.worker.quality`` reads a text with the steps that serve; this process loads no torch.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from muxd.cli.asking import PROGRAM, Json, print_as
from muxd.cli.failing import sentences
from muxd.cli.progress import counting
from muxd.cli.tables import render, size
from muxd.cost import probe
from muxd.errors import ConfigError, ModelFolderError


def quality(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The model folder.")],
    text: Annotated[
        Path | None, typer.Option(help="Read this text instead of muxd's own.", metavar="FILE")
    ] = None,
    json: Json = False,
) -> None:
    """Compare the formats that a model's weights can have on this CPU with float32: perplexity and divergence
    over a text of some 2,700 tokens. Needs memory for all of them at once; takes minutes."""
    with sentences(PROGRAM):
        found = compare(folder, _text(text) if text else "")
        print_as(found, json, table(found))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path}: {error}") from None


def compare(folder: Path, text: str = "") -> list[probe.Compared]:
    """With a progress bar. Raises ModelFolderError."""
    from muxd.device.cpu import Cpu  # numpy, for which no other command of muxctl should wait

    asked = probe.Compare(str(folder.absolute()), Cpu().cores, text)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "muxd.worker.quality"],
        env={**os.environ, **Cpu().worker_env()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended: its exit code says how
            process.stdin.write(probe.encode(asked) + b"\n")
            process.stdin.flush()
        answers = map(probe.decode_compared, process.stdout)
        first, found = next(answers, None), list[probe.Compared]()
        total = first.of if isinstance(first, probe.Counted) else 0
        with counting(f"Reading with {folder.name}", total) as advance:
            for answer in answers:
                if isinstance(answer, probe.Counted):
                    advance(answer.tokens)
                else:
                    found.append(answer)
    if process.returncode:
        raise ModelFolderError(f"reading ended with exit code {process.returncode}; its own words are above")
    return found


def table(rows: list[probe.Compared]) -> str:
    """float32 first, which the others are compared with."""
    headers = ("WEIGHTS", "MATRICES", "SIZE", "PERPLEXITY", "OVER FLOAT32", "MEAN KL", "P99 KL", "SAME FIRST")
    return render(headers, [_row(one, rows[0]) for one in rows])


def _row(one: probe.Compared, reference: probe.Compared) -> list[str]:
    known = [one.weights, ", ".join(one.forms), size(one.nbytes), f"{one.perplexity:.3f}"]
    if one is reference:
        return [*known, *"----"]
    over = one.perplexity / reference.perplexity - 1
    return [*known, f"{over:+.2%}", f"{one.divergence:.5f}", f"{one.worst:.4f}", f"{one.same:.1%}"]
