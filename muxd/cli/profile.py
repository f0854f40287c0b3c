"""``muxd profile``: measure what a model's batches cost on this machine, for the simulator and for SLOs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import msgspec
import typer

from muxd.cli.failing import fail, sentences
from muxd.cli.progress import counting
from muxd.messages import Dtype, DtypeName, KvDtype, StepName, WeightsName, dtype_of

if TYPE_CHECKING:
    from muxd.cost.profile import Profile

_PROGRAM = "muxd"


def profile(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The model folder.")],
    name: Annotated[str, typer.Option(help="The model's name in the file.", metavar="NAME")],
    dtype: Annotated[str, typer.Option(help="auto (as the folder), bfloat16, float16 or float32.")] = "auto",
    kv_dtype: Annotated[str, typer.Option(help="Of K and V: auto (as --dtype) or fp8.")] = "auto",
    weights: Annotated[
        str, typer.Option(help="As weights in muxd.toml: file, int8, int4, or a type of floats.")
    ] = "file",
    cpu_step: Annotated[str, typer.Option(help="As in muxd.toml: auto, native or torch.")] = "auto",
    sampling: Annotated[
        str,
        typer.Option(
            help="How tokens are chosen, as in muxd.toml: '{ temperature = 0.7, top_p = 0.9 }'. Default: "
            "greedily, which costs least.",
            metavar="TABLE",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(help="The file; other models in it stay. Default: MUXD_HOME/cost.json.", metavar="FILE"),
    ] = None,
    daemon: Annotated[bool, typer.Option(help="Measure the daemon's overhead, too.")] = True,
    device: Annotated[str, typer.Option(help='Where: "cpu", or "cuda:0".', metavar="DEVICE")] = "cpu",
    random: Annotated[
        bool, typer.Option("--random", help="Random weights: FOLDER needs a config.json and no more.")
    ] = False,
    roofline: Annotated[
        str,
        typer.Option(
            help="Compute from config.json instead of measuring, for a GPU by its name (h100, l4, rtx4090; "
            "a name that is none lists all).",
            metavar="GPU",
        ),
    ] = "",
) -> None:
    """Measure prefill and decode of a model over batch, context and share. Takes about two minutes."""
    from muxd.config import home
    from muxd.cost.profile import save
    from muxd.models.weights import stored_dtype

    with sentences(_PROGRAM):
        named: DtypeName = _one_of("--dtype", dtype, DtypeName)
        kv_kind: KvDtype = _one_of("--kv-dtype", kv_dtype, KvDtype)
        form: WeightsName = _one_of("--weights", weights, WeightsName)
        by: StepName = _one_of("--cpu-step", cpu_step, StepName)
        chosen = _chosen(sampling)
        if roofline and (form, by) != ("file", "auto"):
            fail(_PROGRAM, "--roofline is of a GPU: --weights and --cpu-step are a CPU's", code=2)
        if roofline and sampling:
            fail(_PROGRAM, "--sampling: what --roofline computes knows nothing of it", code=2)
        kind = dtype_of(named) or stored_dtype(folder, gpu=device != "cpu" or bool(roofline))
        file = out or home() / "cost.json"
        made = (
            _computed(folder, name, kind, kv_kind, roofline, file)
            if roofline
            else _measured(
                folder,
                name,
                kind,
                kv_kind,
                form,
                by,
                chosen,
                file,
                device,
                daemon=daemon and not random,
                random=random,
            )
        )
        save(file, made)
    typer.echo(f"{file}: {', '.join(made.models)}")
    typer.echo(_summary(made, name))


def _one_of(option: str, value: str, kinds: Any) -> Any:
    """``value``, which is one of the literal type ``kinds``; else the command ends."""
    if value not in (names := get_args(kinds)):
        fail(_PROGRAM, f"{option} {value!r}: must be one of {', '.join(names)}", code=2)
    return value


def _chosen(sampling: str) -> dict[str, float]:
    """What a table of ``[model.sampling]`` says."""
    import tomllib

    from muxd.cli.profiling import GREEDY
    from muxd.config import SamplingConfig

    try:
        table = tomllib.loads(f"sampling = {sampling or '{}'}")["sampling"]
        said = msgspec.convert(table, SamplingConfig)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        fail(
            _PROGRAM, f"--sampling {sampling!r}: {error}; as in muxd.toml: '{{ temperature = 0.7 }}'", code=2
        )
    given = {key: value for key, value in msgspec.structs.asdict(said).items() if value is not None}
    return {**GREEDY, **given}


def _measured(
    folder: Path,
    name: str,
    dtype: Dtype,
    kv_dtype: KvDtype,
    weights: WeightsName,
    cpu_step: StepName,
    sampling: dict[str, float],
    file: Path,
    where: str,
    *,
    daemon: bool,
    random: bool,
) -> "Profile":
    from contextlib import closing

    from muxd.cli.overhead import PARTS, measure_overhead
    from muxd.cli.profiling import cells, measure, merged
    from muxd.cost.table import CostTable
    from muxd.device.choose import open_device
    from muxd.errors import ConfigError

    if "+" in where:
        raise ConfigError(f"--device: {where} is a mesh; a profile is of one device")
    with (
        closing(open_device(where, key="--device")) as device,
        counting(f"Measuring {name}", cells(device) + PARTS * daemon) as advance,
    ):
        model = measure(
            folder, dtype, lambda: advance(1), kv_dtype=kv_dtype, weights=weights, cpu_step=cpu_step,
            sampling=sampling, device=device, random=random,
        )  # fmt: skip
        made = merged(file, name, model, device)
        if daemon:
            extra = measure_overhead(folder, name, dtype, CostTable(made), device.name)
            made.models[name] = msgspec.structs.replace(made.models[name], overhead=extra)
            advance(PARTS)
    return made


def _computed(folder: Path, name: str, dtype: Dtype, kv_dtype: KvDtype, device: str, file: Path) -> "Profile":
    from muxd.cost import analytic
    from muxd.cost.profile import FORMAT, Profile, load
    from muxd.cost.shapes import of_spec
    from muxd.errors import ConfigError
    from muxd.models.spec import read_spec
    from muxd.models.weights import plan

    spec = read_spec(folder)
    shape = of_spec(spec, kv_dtype).on(1, dtype)
    parameters = sum(_elements(entry.shape) for entry in plan(folder, spec, dtype).tensors)
    model = analytic.roofline(shape, parameters, spec.heads, device)
    model = msgspec.structs.replace(model, folder=folder.absolute().name)
    made = Profile(FORMAT, analytic.device(device), {name: model})
    if file.exists():
        old = load(file)
        if old.device != made.device:
            raise ConfigError(f"{file} is about {old.device.name}: choose another --out")
        made = msgspec.structs.replace(old, models={**old.models, name: model})
    return made


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _summary(made: "Profile", name: str) -> str:
    from muxd.cost.fit import predicted
    from muxd.cost.table import CostTable

    cost, model = CostTable(made), made.models[name]
    decode = {batch: 1000 * cost.decode(name, batch, 128, 100) for batch in (1, 8, 32)}
    found = predicted(model, made.device.memory) if made.device.memory else {}
    beside = "".join(
        f"{name} {seen:.2f} times as long ({law:.2f} by the law); " for name, (seen, law) in found.items()
    )
    steps = ", ".join(f"{ms:.1f}ms at batch {batch}" for batch, ms in decode.items())
    return (
        f"decode step {steps}; prefill of 256 tokens {1000 * cost.prefill(name, 256, 0, 100):.0f}ms; "
        f"{beside}the daemon adds "
        f"{1e6 * model.overhead.batch:.0f}us a batch, {1e6 * model.overhead.token:.0f}us a token, "
        f"{1e3 * model.overhead.request:.1f}ms a request"
    )
