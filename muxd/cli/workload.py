"""``muxctl workload``: make a workload file for the simulator and for `muxctl bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muxd.cli.failing import fail, sentences
from muxd.cli.tables import render

if TYPE_CHECKING:
    from muxd.sim.retold import Retelling
    from muxd.sim.workload import Workload

_PROGRAM = "muxctl"
_SECONDS = 60.0

# What a workload is made from, and the options that say how. Parameters by their names in `workload`.
_OPTIONS = {
    "models": {"rate", "duration", "alpha", "cv", "lengths", "length_scale", "seed"},
    "traffic": {"duration", "cv", "lengths", "length_scale", "seed"},
    "trace": {
        "kind",
        "models",
        "alpha",
        "mapping",
        "start",
        "duration",
        "time_scale",
        "length_scale",
        "seed",
    },
    "source": {"time_scale", "length_scale"},
}
_FLAGS = {"source": "--from", "mapping": "--map"}


def workload(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Where to write it.")],
    models: Annotated[
        str, typer.Option(help="Model names, most popular first: a,b,c.", metavar="NAMES")
    ] = "",
    traffic: Annotated[
        Path | None, typer.Option(help="Each model's own traffic, see above.", metavar="traffic.toml")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A public trace; --kind says which.", metavar="FILE")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Rescale this workload.", metavar="W.jsonl")
    ] = None,
    rate: Annotated[float, typer.Option(help="Requests a second, all models together.")] = 1.0,
    duration: Annotated[
        float | None,
        typer.Option(
            help=f"Seconds over which requests arrive. Default: as traffic.toml says, else {_SECONDS:g}; "
            "of a trace all."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Popularity: rate of rank i is i^-alpha. 0: all alike.")] = 0.9,
    cv: Annotated[float, typer.Option(help="Variation of the gaps. 1: Poisson, above: bursts.")] = 1.0,
    lengths: Annotated[
        str,
        typer.Option(
            help="Tokens in and out: sharegpt, chatlmsys, constant:IN,OUT, uniform:LOW-HIGH,LOW-HIGH, "
            "lognormal:MEAN,MEAN."
        ),
    ] = "sharegpt",
    length_scale: Annotated[float, typer.Option(help="Multiplies all lengths.")] = 1.0,
    kind: Annotated[
        str,
        typer.Option(
            help="azure (TIMESTAMP, ContextTokens, GeneratedTokens), burstgpt (Timestamp, Model, Request "
            "tokens, Response tokens) or mooncake (timestamp, input_length, output_length).",
            metavar="KIND",
        ),
    ] = "",
    mapping: Annotated[
        str,
        typer.Option(
            "--map",
            help="Models for those that the trace names: GPT-4=big,ChatGPT=small. Default: its own names.",
            metavar="THEIRS=OURS",
        ),
    ] = "",
    start: Annotated[float, typer.Option(help="Of a trace: leave out its first seconds.")] = 0.0,
    time_scale: Annotated[
        float, typer.Option(help="With --trace, --from: multiplies all times; 0.5 is twice the rate.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
) -> None:
    """Make a workload file: who asks which model when, and how long prompt and answer are.

    From --models that differ by popularity only, from --traffic, from a public
    --trace (its own models, or its requests dealt to --models by popularity),
    or --from another workload.

    traffic.toml has one table for each model; only name and rate are required:

    duration = 3600
    [[model]]
    name = "chat"
    rate = 2.0                       # requests a second
    lengths = "lognormal:4000,150"   # else --lengths
    cv = 4.0                         # else --cv
    phases = [[0, 60, 1.0], [60, 120, 0.0]]   # from, to, times the rate
    phases_every = 120               # seconds, then they begin again
    day = {depth = 0.8, period = 86400, peak = 43200}   # a sine: +-80 %
    """
    from muxd.sim import workload as files  # numpy: not for --help
    from muxd.sim.generate import Recipe, generate
    from muxd.sim.retold import Retelling

    with sentences(_PROGRAM):
        _check_options(context)
        names, note = _names(models), ""
        if trace is not None:
            wanted = Retelling(names, _pairs(mapping), alpha, start, duration, time_scale, length_scale, seed)
            made, note = _told(trace, kind, wanted)
        elif traffic is not None:
            made = _mixed(traffic, cv, lengths, duration, length_scale, seed)
        elif source is not None:
            made = files.rescaled(files.read(source), time=time_scale, length=length_scale)
        else:
            seconds = _SECONDS if duration is None else duration
            made = generate(Recipe(names, rate, seconds, alpha, cv, lengths, length_scale, seed))
        if not made.items:
            fail(_PROGRAM, f"no request arrives within {made.duration:g} s; raise a rate or --duration")
        files.write(out, made)
    typer.echo(_shown(made))
    count = len(made.items)
    typer.echo(f"\n{count} request{'' if count == 1 else 's'} over {made.duration:.0f} s in {out}{note}")


def _check_options(context: typer.Context) -> None:
    """One thing to make it from, and no option that has no meaning there."""
    given = [name for name in context.params if name != "out" and _is_given(context, name)]
    sources = [name for name in ("trace", "traffic", "source", "models") if name in given]
    if sources == ["trace", "models"]:
        sources = ["trace"]
    if not sources:
        choice = "--models a,b,c, --traffic traffic.toml, --trace FILE or --from W.jsonl"
        fail(_PROGRAM, f"say what to make it from: {choice}", code=2)
    if len(sources) > 1:
        fail(_PROGRAM, f"{_flag(sources[0])} and {_flag(sources[1])}: give one of them", code=2)
    for name in given:
        if name not in {*sources, *_OPTIONS[sources[0]]}:
            others = " and ".join(_flag(other) for other, options in _OPTIONS.items() if name in options)
            fail(_PROGRAM, f"{_flag(name)} goes with {others}, not with {_flag(sources[0])}", code=2)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _flag(name: str) -> str:
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _pairs(text: str) -> dict[str, str]:
    from muxd.errors import ConfigError

    pairs = {}
    for part in _names(text):
        theirs, _, ours = (word.strip() for word in part.partition("="))
        if not (theirs and ours) or theirs in pairs:
            raise ConfigError(f"--map {part!r}: write each name of the trace once: GPT-4=big,ChatGPT=small")
        pairs[theirs] = ours
    return pairs


def _told(trace: Path, kind: str, wanted: "Retelling") -> "tuple[Workload, str]":
    from muxd.errors import ConfigError
    from muxd.sim.retold import retold
    from muxd.sim.traces import read

    if wanted.models and wanted.mapping:
        raise ConfigError("--models and --map: give one of them; --map names the models")
    made, left_out = retold(read(trace, kind), wanted)
    return made, f"; {left_out} of 0 tokens left out" if left_out else ""


def _mixed(
    path: Path, cv: float, lengths: str, duration: float | None, length_scale: float, seed: int
) -> "Workload":
    from muxd.sim.generate import mixed
    from muxd.sim.traffic import read

    models, own = read(path, cv=cv, lengths=lengths)
    seconds = next((given for given in (duration, own) if given is not None), _SECONDS)
    return mixed(models, seconds, length_scale, seed)


def _shown(made: "Workload") -> str:
    """Each model, most requests first: how many, how often, how long on average."""
    from muxd.sim.workload import Item

    by_model: dict[str, list[Item]] = {name: [] for name in made.models}
    for item in made.items:
        by_model[item.model].append(item)
    rows = []
    for name, items in by_model.items():
        count = len(items)
        often = f"{count / made.duration:.3f}" if made.duration else "-"
        prompt = sum(item.prompt_tokens for item in items) / count
        output = sum(item.output_tokens for item in items) / count
        rows.append([name, str(count), often, f"{prompt:.0f}", f"{output:.0f}"])
    return render(("MODEL", "REQUESTS", "PER SECOND", "TOKENS IN", "OUT"), rows)
