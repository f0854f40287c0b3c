"""The timeline and the Chrome trace made of it: complete, bounded, one batch at a time on a track."""

from collections import Counter, defaultdict
from itertools import pairwise

import msgspec
import pytest
from support.bench_worker import Spec
from support.timed_unit import Arrival, TimedUnit

from muxd.engine import timeline
from muxd.engine.chrome import chrome
from muxd.messages import Decode, Prefill


def busy_unit() -> TimedUnit:
    """Two models with prefills, decodes and preemptions, and one worker lost and back."""
    unit = TimedUnit([Spec("a", blocks=2), Spec("b.2", blocks=1, row_tokens=2)], 24)
    unit.play([Arrival(0.01 * i, ("a", "b.2")[i % 2], 8, 20) for i in range(8)])
    unit.offer(Arrival(unit.now, "a", 8, 4))
    unit.now += 0.004
    unit.lose("a")
    unit.revive("a")
    unit.journal.mark("policy", unit.now, detail="temporal")
    return unit


@pytest.fixture(scope="module")
def unit() -> TimedUnit:
    return busy_unit()


def test_every_batch_is_there_once_with_its_size(unit: TimedUnit) -> None:
    spans = unit.journal.timeline.snapshot(unit.now).spans
    want = {}
    for _, model, command in unit.launches:
        sizes = [1] * len(command.seqs) if isinstance(command, Decode) else []
        if isinstance(command, Prefill):
            sizes = [len(chunk.tokens) // 4 for chunk in command.chunks]
        want[command.batch] = (model, command.share, len(sizes), sum(sizes))
    assert {s.batch: (s.model, s.share, s.sequences, s.tokens) for s in spans} == want
    assert Counter(s.batch for s in spans).most_common(1)[0][1] == 1
    assert [s.model for s in spans if s.lost] == ["a"]
    assert [s.model for s in spans if s.end is None] == ["a"]  # started again after the loss


def test_the_file_is_what_the_viewers_read(unit: TimedUnit) -> None:
    file = msgspec.json.decode(msgspec.json.encode(chrome([unit.journal.timeline.snapshot(unit.now)])))
    events = file["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C", "i"}
    assert all(event["ts"] >= 0 for event in events if event["ph"] != "M")
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(names.values()) == {"a prefill", "a decode", "b.2 prefill", "b.2 decode"}
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            assert names[event["tid"]].split()[1] == event["cat"] == event["name"].split()[0]
            tracks[names[event["tid"]].split()[0]].append((event["ts"], event["ts"] + event["dur"]))
    for intervals in tracks.values():  # a model computes one batch at a time
        ordered = sorted(intervals)
        assert all(end <= begin + 0.2 for (_, end), (begin, _) in pairwise(ordered))


def test_marks_tell_preemptions_losses_and_changes(unit: TimedUnit) -> None:
    events = chrome([unit.journal.timeline.snapshot(unit.now)])["traceEvents"]
    marks = Counter(event["name"] for event in events if event["ph"] == "i")
    assert marks["preempted"] == len(unit.preempted) > 0
    assert marks["worker lost"] == 1
    assert marks["policy temporal"] == 1


def test_counters_add_up_to_the_pool(unit: TimedUnit) -> None:
    events = chrome([unit.journal.timeline.snapshot(unit.now)])["traceEvents"]
    blocks = [event["args"] for event in events if event["ph"] == "C" and event["name"] == "blocks"]
    assert len(blocks) > 5
    assert {sum(one.values()) for one in blocks} == {unit.ledger.total_blocks}
    by_model = [e["args"] for e in events if e["ph"] == "C" and e["name"] == "blocks used by model"]
    assert [sum(one.values()) for one in by_model] == [one["used"] for one in blocks]
    times = [event["ts"] for event in events if event["ph"] == "C" and event["name"] == "blocks"]
    assert all(later - earlier >= 19_999 for earlier, later in pairwise(times))


def test_an_empty_trace_is_a_trace() -> None:
    unit = TimedUnit([Spec("a")])
    file = chrome([unit.journal.timeline.snapshot(0.0)])
    assert [event["ph"] for event in file["traceEvents"] if event["ph"] == "X"] == []


def test_the_rings_forget_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_SPANS", 5)
    monkeypatch.setattr(timeline, "_MARKS", 1)
    unit = busy_unit()
    trace = unit.journal.timeline.snapshot(unit.now)
    batches = [command.batch for _, _, command in unit.launches]
    assert [span.batch for span in trace.spans] == batches[-6:]  # five done, one running
    assert [mark.kind for mark in trace.marks] == ["policy"]
