"""Prefill and decode time against the share of a device, beside the table MuxServe published for an A100.

    python benchmarks/share_table.py [--shape llama-7b] [--device cuda:0] [--published llama.json]
                                     [--batches 1 8 32 128] [--lengths 128 512] [--json F] [--markdown F]

The model is random numbers in the published model's shape; the batches run in the worker's own code, in one
process for each share, capped by MPS, as the published ones were. Without MPS only the whole device can be
measured, and the table says so. ``--published`` is examples/placement/llama.json of MuxServe's repository.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from msgspec import Struct
from provenance import Machine, machine, markdown_table
from random_model import FORMS, Form

from muxd.cli.profiling import Prober
from muxd.cost import probe
from muxd.cost.published import Published
from muxd.device.base import Device
from muxd.device.choose import open_device
from muxd.device.cuda import Cuda
from muxd.errors import MuxdError
from muxd.messages import Dtype

SHARES = (100, 50, 30, 70, 40, 60, 80, 90)  # the published ones; the whole device is what others are told in
_SECONDS = 0.3  # of one probe at least
_ROOM = 64  # tokens beyond the context that the steps of a decode probe write


class Line(Struct, frozen=True):
    """Seconds at one share; published ones in seconds too, None where there are none."""

    phase: str
    share: int
    batch: int
    length: int
    seconds: float
    published: float | None


def measured(
    device: Device, form: Form, dtype: Dtype, batches: list[int], lengths: list[int], shares: list[int]
) -> Iterator[Line]:
    """Prefill of ``batch`` prompts of ``length`` tokens, and a decode step of as many at that context."""
    pool = max(batches) * (max(lengths) + 2 * _ROOM) * form.token_bytes * (2 if dtype == "float32" else 1)
    with tempfile.TemporaryDirectory(prefix="muxd-shape-") as scratch:
        form.config(Path(scratch))
        for share in shares:
            cap = share if device.caps else 0
            folder = Path(scratch)
            with Prober(folder, dtype, device, max(pool, 64 << 20), cap=cap, random=True) as prober:
                for batch in batches:
                    for length in lengths:
                        tokens = probe.Prefill(batch * length, 0, share, batch, seconds=_SECONDS)
                        step = probe.Decode(batch, length, share, seconds=_SECONDS)
                        for phase, asked in (("prefill", tokens), ("decode", step)):
                            yield Line(phase, share, batch, length, prober.measure(asked), None)


def beside(lines: list[Line], file: Path, model: str) -> list[Line]:
    """The same lines with the published seconds of one GPU, as they were published."""
    raw = json.loads(file.read_text())
    if model not in Published.read(file).models():
        return lines
    cells, keys = raw[model]["1"], {"prefill": "prefill", "decode": "decoding"}

    def found(line: Line) -> float | None:
        cell = cells.get(str(line.share), {}).get(str(line.batch), {}).get(str(line.length))
        value = cell[keys[line.phase]] if cell else -1
        return value / 1000 if value > 0 else None

    return [
        Line(line.phase, line.share, line.batch, line.length, line.seconds, found(line)) for line in lines
    ]


def table(lines: list[Line]) -> str:
    """A row for each phase, batch and length; a column for each share: times the time on the whole device."""
    shares = sorted({line.share for line in lines})
    heads = ["phase", "batch", "length", "where", "ms at 100 %", *(f"{s} %" for s in shares if s < 100)]
    rows = []
    for phase, batch, length in dict.fromkeys((line.phase, line.batch, line.length) for line in lines):
        of = {s.share: s for s in lines if (s.phase, s.batch, s.length) == (phase, batch, length)}
        ours = {share: line.seconds for share, line in of.items()}
        theirs = {share: line.published for share, line in of.items() if line.published}
        for where, times in (("here", ours), ("published A100", theirs)):
            if whole := times.get(100):
                ratios = [f"{times[s] / whole:.2f}" if times.get(s) else "-" for s in shares if s < 100]
                rows.append([phase, str(batch), str(length), where, f"{1000 * whole:.2f}", *ratios])
    return markdown_table(heads, rows)


def device_shares(device: Device, wanted: list[int]) -> list[int]:
    """Those of ``wanted`` that this device can give a process."""
    if device.caps:
        return wanted
    return [share for share in wanted if share in device.rungs] if not device.parts else [100]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=list(FORMS), default="llama-7b")
    parser.add_argument("--device", default="cuda:0", help='"cuda:0", or "cpu" with --shape tiny')
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="float16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--shares", type=int, nargs="+", default=list(SHARES))
    parser.add_argument("--published", type=Path, help="MuxServe's llama.json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    try:
        with closing(open_device(args.device, "caps", key="--device")) as device:
            about, lines = machine(device), []
            for line in run(args, device):
                lines.append(line)
                text = written(args, about, lines)  # a run that is cut short keeps what it found
    except MuxdError as error:
        sys.exit(f"benchmarks/share_table.py: {error.message}")
    print(text)


def run(args: argparse.Namespace, device: Device) -> Iterator[Line]:
    """Measure, and say so on standard error."""
    shares = device_shares(device, args.shares)
    if shares != args.shares and isinstance(device, Cuda):
        print(
            f"{device.name} cannot be capped (`muxd doctor --gpu` says why): only {shares} %", file=sys.stderr
        )
    for line in measured(device, FORMS[args.shape], args.dtype, args.batches, args.lengths, shares):
        at = f"{line.share} %, batch {line.batch}, {line.length} tokens"
        print(f"{line.phase} at {at}: {1000 * line.seconds:.2f} ms", file=sys.stderr, flush=True)
        yield line


def written(args: argparse.Namespace, about: Machine, lines: list[Line]) -> str:
    """What was measured so far, in the files that were asked for."""
    if args.published:
        lines = beside(lines, args.published, args.shape)
    text = f"{about.line}. {args.shape}, {args.dtype}, random weights.\n\n{table(lines)}"
    if args.json:
        found = [{name: getattr(line, name) for name in Line.__struct_fields__} for line in lines]
        args.json.write_text(json.dumps({"machine": about.fields, "shape": args.shape, "lines": found}))
    if args.markdown:
        args.markdown.write_text(text + "\n")
    return text


if __name__ == "__main__":
    main()
