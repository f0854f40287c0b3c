"""``muxctl top``: what the page shows, in a terminal, from the same feed."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from muxd.cli.asking import PROGRAM, Json, Socket, client_at, warn_of_version
from muxd.cli.failing import sentences
from muxd.cli.tables import clean, duration, size
from muxd.watch.changes import apply
from muxd.watch.schemas import Change, DeviceView, ModelView, Picture

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

# As the page has them (muxd/watch/page/colours.js): told apart by people who see colours differently.
_COLOURS = ("#3f8fe6", "#eda100", "#16b088", "#d073b0", "#e0662a", "#6fc3f2", "#8c6de0", "#b9b02a")
_SIGNS = {"guaranteed": "█", "quota": "█", "borrowed": "▒", "cached": "░", "free": "·"}
_BARS = "▁▂▃▄▅▆▇█"
_REQUESTS, _EVENTS = 8, 5  # that are shown
_WIDE = 120  # columns; a narrower terminal has fewer of ours
_LATE = ("failed", "refused", "worker lost", "worker hung", "device fault", "restarting")


def top(
    once: Annotated[bool, typer.Option("--once", help="Print how things are, and end.")] = False,
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Watch pools, models, requests and decisions live; Ctrl-C ends it. With --json the feed, a line each."""
    with sentences(PROGRAM):
        client = client_at(socket)
        frames = client.watch()
        try:
            _show(frames, once, json)
        except KeyboardInterrupt:
            return  # how one leaves it
        finally:
            frames.close()
        warn_of_version(client)


def _show(frames: Iterator[Picture | Change], once: bool, json: bool) -> None:
    if json:
        for frame in frames:
            typer.echo(msgspec.json.encode(frame))
            if once:
                return
        return
    from rich.console import Console  # half as long to load as all the rest of muxctl
    from rich.live import Live

    console = Console(highlight=False)
    pictures = _pictures(frames)
    first = next(pictures, None)
    if first is None:
        return
    if once or not console.is_terminal:
        console.print(render(first, console.width))
        return
    with Live(render(first, console.width), console=console, screen=True, auto_refresh=False) as live:
        for picture in pictures:
            live.update(render(picture, console.width), refresh=True)
    console.print("muxd has ended.")


def _pictures(frames: Iterable[Picture | Change]) -> Iterator[Picture]:
    picture = None
    for frame in frames:
        if isinstance(frame, Picture):
            picture = frame
        elif picture is not None:
            picture = apply(picture, frame)
        if picture is not None:
            yield picture


def render(picture: Picture, width: int) -> "Group":
    """Everything, for a terminal of ``width`` columns."""
    from rich.console import Group
    from rich.text import Text

    wide = width >= _WIDE
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(picture.models)}
    return Group(
        _head(picture),
        *(_device(device, colours, width) for device in picture.devices.values()),
        Text(),
        _models(picture, colours, wide),
        Text(),
        _requests(picture, colours, wide),
        Text(),
        *_events(picture, colours),
    )


def _head(picture: Picture) -> "Text":
    from rich.text import Text

    daemon, outcomes = picture.daemon, picture.daemon.outcomes
    rate = sum(model.tokens_per_second for model in picture.models.values())
    said = (
        f"  {daemon.version}  {daemon.policy}  up {duration(picture.time - daemon.began)}  {daemon.address}  "
        f"{rate:.1f} tokens/s  " + ", ".join(f"{count} {name}" for name, count in outcomes.items())
    )
    return Text.assemble(("muxd", "bold"), said.rstrip(), no_wrap=True, overflow="ellipsis")


def _device(device: DeviceView, colours: dict[str, str], width: int) -> "Text":
    """Its pool as a bar: held, borrowed, cached and free; then its weights."""
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"\n{clean(device.name)}  {size(device.blocks * device.block_bytes)} pool\n", "dim")
    done = blocks = 0
    for model, kind, count in ((run.model, run.kind, run.blocks) for run in device.runs):
        blocks += count
        cells = round(width * blocks / max(1, device.blocks)) - done
        done += cells
        line.append(_SIGNS[kind] * cells, colours.get(model, "dim"))
    line.append("\nweights ", "dim")
    for one in device.weights:
        part = f" {100 * one.done:.0f}%" if one.state == "loading" else ""
        line.append(f"■ {clean(one.model)} ", colours.get(one.model, ""))
        line.append(f"{size(one.bytes)} {one.state}{part}  ", "dim")
    return line


def _models(picture: Picture, colours: dict[str, str], wide: bool) -> "Table":
    several = len(picture.devices) > 1
    table = _Rows(
        (
            "MODEL",
            "STATE",
            "DEVICE",
            "USE",
            "RUN",
            "WAIT",
            "TTFT50",
            "TTFT99",
            "TPOT50",
            "TOK/S",
            "SLO",
            "TOKENS/S",
        ),
        numbers=("USE", "RUN", "WAIT", "TTFT50", "TTFT99", "TPOT50", "TOK/S", "SLO"),
        without=(*([] if several else ["DEVICE"]), *([] if wide else ["TTFT50", "SLO", "TOKENS/S"])),
    )
    for name, row in picture.models.items():
        table.add({
            "MODEL": _named(name, colours),
            "STATE": _toned(row.state),
            "DEVICE": clean(row.device) or "-",
            "USE": f"{min(100, row.in_use)}%" if row.in_use else "-",
            "RUN": str(row.running),
            "WAIT": str(row.waiting),
            "TTFT50": _ms(row.ttft_p50_ms),
            "TTFT99": _judged(row),
            "TPOT50": _ms(row.tpot_p50_ms),
            "TOK/S": f"{row.tokens_per_second:.1f}",
            "SLO": "-" if row.attainment is None else f"{100 * row.attainment:.0f}%",
            "TOKENS/S": f"[{colours[name]}]{_spark(picture.tokens.get(name, []))}[/]",
        })  # fmt: skip
    return table.made


def _requests(picture: Picture, colours: dict[str, str], wide: bool) -> "Table":
    newest = sorted(picture.requests.values(), key=lambda one: one.arrived, reverse=True)[:_REQUESTS]
    table = _Rows(
        ("CAME", "REQUEST", "MODEL", "KEY", "QUEUE", "TTFT", "TOKENS", "TOOK", "OUTCOME"),
        numbers=("QUEUE", "TTFT", "TOKENS", "TOOK"),
        without=() if wide else ("REQUEST", "QUEUE"),
    )
    for one in newest:
        took = (picture.time - one.arrived if one.seconds is None else one.seconds) * 1000
        table.add({
            "CAME": _clock(one.arrived),
            "REQUEST": clean(one.id),
            "MODEL": _named(one.model, colours),
            "KEY": clean(one.key) or "-",
            "QUEUE": _ms(one.queue_ms),
            "TTFT": _ms(one.ttft_ms),
            "TOKENS": str(one.tokens),
            "TOOK": _ms(took),
            "OUTCOME": _toned(one.state),
        })  # fmt: skip
    return table.made


def _events(picture: Picture, colours: dict[str, str]) -> Iterator["Text"]:
    from rich.text import Text

    for one in reversed(picture.events[-_EVENTS:]):
        yield Text.assemble(
            (_clock(one.time), "dim"), "  ", (one.kind, "red" if one.kind in _LATE else ""), "  ",
            (clean(one.model), colours.get(one.model, "")), "  ",
            (clean(f"{one.device} {one.detail}"), "dim"), no_wrap=True, overflow="ellipsis",
        )  # fmt: skip


class _Rows:
    """A table without lines; cells by the names of their columns."""

    def __init__(self, headers: Iterable[str], numbers: Iterable[str], without: Iterable[str]):
        from rich.table import Table

        self.made = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
        self._shown = [header for header in headers if header not in without]
        for header in self._shown:
            self.made.add_column(header, justify="right" if header in numbers else "left", no_wrap=True)

    def add(self, cells: dict[str, str]) -> None:
        self.made.add_row(*(cells[header] for header in self._shown))


def _named(model: str, colours: dict[str, str]) -> str:
    from rich.markup import escape

    return f"[{colours.get(model, 'default')}]■[/] {escape(clean(model))}"


def _toned(state: str) -> str:
    tone = {"ready": "green", "served": "green", "running": "blue", "loading": "blue", "waking": "blue"}.get(
        state, "red" if state in _LATE else "dim"
    )
    return f"[{tone}]{state}[/]"


def _judged(row: ModelView) -> str:
    """Red where it is above its target."""
    late = row.ttft_target_ms and row.ttft_p99_ms is not None and row.ttft_p99_ms > row.ttft_target_ms
    return f"[red]{_ms(row.ttft_p99_ms)}[/]" if late else _ms(row.ttft_p99_ms)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}ms" if value < 1000 else f"{value / 1000:.1f}s"


def _spark(points: list[float]) -> str:
    """Of the last two and a half minutes, a sign for each point."""
    shown = points[-30:]
    most = max(shown, default=0.0)
    return "".join(_BARS[min(7, int(8 * point / most))] if most else _BARS[0] for point in shown)


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%H:%M:%S")
