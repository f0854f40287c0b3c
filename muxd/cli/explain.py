"""``muxctl why`` and ``muxctl trace``: where a request's time went, and who ran when."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show, warn_of_version
from muxd.cli.failing import fail, sentences
from muxd.cli.tables import render
from muxd.engine.trace import RequestTimes, Stay

# reason of a queue's head -> how the table calls it, how the sentence does
_WAITS = {
    "rows": ("queued for memory", "for memory (its quota, or what others left)"),
    "slots": ("queued for a slot", "for one of its model's max_running slots"),
    "share": ("queued for its share", "for its share of the device"),
    "turn": ("queued for its turn", "for its model's turn"),
    "worker": ("queued for its worker", "for its model's worker to be ready"),
    "busy": ("queued behind its own model", "for its own model to finish other batches"),
}
_WORTH_TELLING = 0.05  # parts of the total that the sentence mentions


def why(
    id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help='The answer\'s "id" or x-request-id.')],
    socket: Socket = "",
    json: Json = False,
) -> None:
    """Tell where a request's time went: queued, prefill, decode, preempted."""
    with sentences(PROGRAM):
        client = client_at(socket)
        found = client.why(id)
        show(client, found, json, "\n\n".join(map(story, found)))


def trace(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it, such as trace.json.")],
    force: Annotated[bool, typer.Option(help="Replace a file of that name.")] = False,
    socket: Socket = "",
) -> None:
    """Write who ran when as a Chrome trace, to be opened in Perfetto."""
    from muxd.engine.chrome import chrome

    with sentences(PROGRAM):
        client = client_at(socket)
        found = client.trace()
        body = msgspec.json.encode(chrome(found))
        try:
            with file.open("wb" if force else "xb") as out:
                out.write(body)
        except FileExistsError:
            fail(PROGRAM, f"{file} exists; choose another name, or --force to replace it")
        except OSError as error:
            fail(PROGRAM, f"cannot write {file}: {error.strerror or error}")
        spans, now = [span for one in found for span in one.spans], found[0].now
        begin = min((span.start for span in spans), default=now)
        typer.echo(
            f"Wrote {len(spans)} batches of the last {now - begin:.0f} s to {file}.\n"
            "Open it at https://ui.perfetto.dev (Open trace file; it stays on your machine) or chrome://tracing."
        )
        warn_of_version(client)


def story(one: RequestTimes) -> str:
    """One request for people: what it was, a table of its stages, one sentence."""
    table = _table(one)
    prompt = f"{one.prompt_tokens} prompt tokens ({one.cached_tokens} cached)"
    known = f" (x-request-id {one.http_id})" if one.http_id else ""
    model = f"{one.adapter} on {one.model}" if one.adapter else one.model
    model += f" over {', '.join(one.cut_over)}" if one.cut_over else ""
    head = f"{one.id}{known}\n{model}, {one.state}; {prompt}, {one.generated_tokens} generated"
    return f"{head}\n\n{table}\n\n{sentence(one)}" if one.state != "refused" else f"{head}\n\n{sentence(one)}"


def _table(one: RequestTimes) -> str:
    if not one.stays:
        rows = [[*_cells(one, name, s)] for name, s in [*_stages(one, one), ("total", one.total)]]
        return render(("WHERE", "SECONDS", "PART"), rows)
    places = [(stay.device, name, s) for stay in one.stays for name, s in _stages(stay, one)]
    rows = [[device, *_cells(one, name, s)] for device, name, s in [*places, ("", "total", one.total)]]
    return render(("DEVICE", "WHERE", "SECONDS", "PART"), rows)


def _cells(one: RequestTimes, name: str, seconds: float) -> tuple[str, str, str]:
    return name, f"{seconds:.3f}", _part(seconds, one.total)


def _stages(one: RequestTimes | Stay, whole: RequestTimes) -> list[tuple[str, float]]:
    """In the order of a request's life; what took no time is left out."""
    waits = [(_WAITS.get(reason, (f"queued: {reason}",))[0], s) for reason, s in one.waits.items()]
    rest = [
        ("prefill", one.prefill),
        ("recomputed after preemption" if whole.preemptions else "recomputed", one.recompute),
        ("decode", one.decode),
        ("between decode steps", one.held),
    ]
    return [(name, s) for name, s in [*waits, *rest] if s > 0]


def sentence(one: RequestTimes) -> str:
    """What cost most, in words."""
    if one.state == "refused":
        return f"Refused: {one.detail}."
    said = [_waited(one, reason, s) for reason, s in _largest(one.waits) if _tells(s, one)]
    computed = one.prefill + one.recompute
    if _tells(computed, one):
        said.append(f"was prefilled in {computed:.2f} s")
    if _tells(one.decode, one):
        said.append(f"decoded for {one.decode:.2f} s")
    if _tells(one.held, one):
        said.append(f"sat out {one.held:.2f} s between decode steps while prefills and other models ran")
    if one.preemptions:
        said.append(f"was preempted {_times(one.preemptions)} and recomputed")
    if one.reruns:
        said.append(f"lost its worker {_times(one.reruns)} and went on with the next")
    said += [
        f"was moved from {old.device} to {new.device} after {new.came - one.arrived:.2f} s"
        for old, new in pairwise(one.stays)
    ]
    text = f"It {', '.join(said)}" if said else "It took no time worth telling"
    first = "" if one.ttft is None else f"; its first token came after {one.ttft:.2f} s"
    end = f" It has failed: {one.detail}." if one.state == "failed" else ""
    return f"{text}{first}.{end}"


def _waited(one: RequestTimes, reason: str, seconds: float) -> str:
    words = _WAITS.get(reason, ("", reason))[1]
    others = [model for model, s in _largest(one.beside) if s >= _WORTH_TELLING * seconds]
    beside = f" while {' and '.join(others[:2])} prefilled" if others and reason in ("share", "turn") else ""
    return f"waited {seconds:.2f} s {words}{beside}"


def _largest(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def _tells(seconds: float, one: RequestTimes) -> bool:
    return seconds > _WORTH_TELLING * one.total


def _part(seconds: float, total: float) -> str:
    return f"{100 * seconds / total:.0f}%" if total else "-"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
