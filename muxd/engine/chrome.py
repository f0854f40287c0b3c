"""A ``Trace`` as Chrome's trace event JSON, which Perfetto and chrome://tracing open. Pure.

Format: "Trace Event Format" (Google, 2016): "X" complete events, "C" counters, "i" instants, "M" names; times
in microseconds. One process for each device, in it one track for each model and phase, in the order of the
first batch.
"""

from collections.abc import Iterable
from typing import Any

from muxd.engine.trace import Mark, Sample, Span, Trace

Event = dict[str, Any]


def chrome(traces: Iterable[Trace]) -> dict[str, Any]:
    """The whole file, to be written as JSON. Times stay on the daemon's clock, as in ``why --json``."""
    events = [{**event, "pid": number} for number, trace in enumerate(traces, 1) for event in _events(trace)]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(trace: Trace) -> Iterable[Event]:
    """Of one device."""
    tracks = _tracks(trace)
    events = [_named("process_name", 0, f"muxd {trace.device}".rstrip())]
    for (model, phase), number in tracks.items():
        events.append(_named("thread_name", number, f"{model} {phase}"))
        events.append({**_base("M", "thread_sort_index", number), "args": {"sort_index": number}})
    events += [_span(span, tracks[span.model, span.phase], trace.now) for span in trace.spans]
    events += [_mark(mark, tracks) for mark in trace.marks]
    for sample in trace.samples:
        events += _counters(sample)
    return events


def _tracks(trace: Trace) -> dict[tuple[str, str], int]:
    """A number for each model and phase; a model's two phases lie next to each other."""
    models = dict.fromkeys(span.model for span in trace.spans)
    ran = {(span.model, span.phase) for span in trace.spans}
    pairs = [(model, phase) for model in models for phase in ("prefill", "decode") if (model, phase) in ran]
    return {pair: number for number, pair in enumerate(pairs, 1)}


def _span(span: Span, track: int, now: float) -> Event:
    end = now if span.end is None else span.end
    name = f"{span.phase} {span.tokens}" if span.phase == "prefill" else f"decode x{span.sequences}"
    arguments: Event = {
        "batch": span.batch,
        "sequences": span.sequences,
        "tokens": span.tokens,
        "share_percent": span.share,
    }
    if span.end is None or span.lost:
        arguments["ended"] = "worker lost" if span.lost else "still running"
    timing = {"ts": _micros(span.start), "dur": _micros(end - span.start), "cat": span.phase}
    return {**_base("X", name, track), **timing, "args": arguments}


def _mark(mark: Mark, tracks: dict[tuple[str, str], int]) -> Event:
    """On its model's first track; across all tracks where it has none."""
    track = min((number for (model, _), number in tracks.items() if model == mark.model), default=0)
    name = f"{mark.kind} {mark.detail}" if mark.kind == "policy" else mark.kind
    arguments = {key: text for key, text in (("model", mark.model), ("detail", mark.detail)) if text}
    where = {"ts": _micros(mark.time), "s": "t" if track else "g", "cat": "mark"}
    return {**_base("i", name, track), **where, "args": arguments}


def _counters(sample: Sample) -> Iterable[Event]:
    used = dict(zip(sample.models, sample.used, strict=True))
    blocks = {"free": sample.free, "cached": sample.cached, "used": sum(sample.used)}
    by_model = {
        "blocks": blocks,
        "blocks used by model": used,
        "waiting": dict(zip(sample.models, sample.waiting, strict=True)),
        "running": dict(zip(sample.models, sample.running, strict=True)),
    }
    return [{**_base("C", name, 0), "ts": _micros(sample.time), "args": v} for name, v in by_model.items()]


def _named(kind: str, track: int, name: str) -> Event:
    return {**_base("M", kind, track), "args": {"name": name}}


def _base(phase: str, name: str, track: int) -> Event:
    return {"ph": phase, "name": name, "tid": track}


def _micros(seconds: float) -> float:
    return round(seconds * 1e6, 1)
