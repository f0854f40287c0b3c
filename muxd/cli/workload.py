"""``muxctl workload``: make a workload file for the simulator and for `muxctl bench`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from muxd.cli.failing import fail, sentences
from muxd.cli.tables import render

_PROGRAM = "muxctl"


def workload(
    out: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Where to write it.")],
    models: Annotated[
        str, typer.Option(help="Model names, most popular first: a,b,c.", metavar="NAMES")
    ] = "",
    source: Annotated[
        Path | None, typer.Option("--from", help="Rescale this workload instead of drawing one.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second, all models together.")] = 1.0,
    duration: Annotated[float, typer.Option(help="Seconds over which requests arrive.")] = 60.0,
    alpha: Annotated[float, typer.Option(help="Popularity: rate of rank i is i^-alpha. 0: all alike.")] = 0.9,
    cv: Annotated[float, typer.Option(help="Variation of the gaps. 1: Poisson, above: bursts.")] = 1.0,
    lengths: Annotated[
        str,
        typer.Option(
            help="sharegpt, chatlmsys, constant:IN,OUT, uniform:LOW-HIGH,LOW-HIGH, lognormal:MEAN,MEAN."
        ),
    ] = "sharegpt",
    length_scale: Annotated[float, typer.Option(help="Multiplies all lengths.")] = 1.0,
    time_scale: Annotated[float, typer.Option(help="With --from: multiplies all times.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
) -> None:
    """Make a workload file: who asks which model when, and how long prompt and answer are."""
    from muxd.sim import workload as files  # numpy: not for --help
    from muxd.sim.generate import Recipe, generate

    with sentences(_PROGRAM):
        names = [name for name in models.split(",") if name]
        if (source is None) == (not names):
            fail(_PROGRAM, "say --models a,b,c for a new workload, or --from FILE to rescale one", code=2)
        if source is not None:
            made = files.rescaled(files.read(source), time=time_scale, length=length_scale)
        else:
            made = generate(Recipe(names, rate, duration, alpha, cv, lengths, length_scale, seed))
        if not made.items:
            fail(_PROGRAM, f"no request arrives within {duration} s at {rate} a second; raise one of them")
        files.write(out, made)
    counts = Counter(item.model for item in made.items)
    rows = [[name, str(count), f"{count / made.duration:.3f}"] for name, count in counts.most_common()]
    typer.echo(render(("MODEL", "REQUESTS", "PER SECOND"), rows))
    typer.echo(f"\n{len(made.items)} requests over {made.duration:.0f} s in {out}")
