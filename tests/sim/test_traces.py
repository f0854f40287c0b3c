"""Public traces, by files of their columns and made-up rows: read, dealt to models, cut, refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from muxd.errors import ConfigError
from muxd.sim.retold import Retelling, retold
from muxd.sim.traces import KINDS, read
from muxd.sim.workload import Item

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:48.1805900,396,109
2023-11-16 18:16:46.6805900,20000,500
"""
# With a zone, not in order of time.
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-11 00:00:02.500000+00:00,5,6
2024-05-11 00:00:00.009930+00:00,3,4
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,Conversation log
46,ChatGPT,700,0,700,API log
118,ChatGPT,417,276,693,API log
"""
BURSTGPT_3 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log
19440161.5,,2,ChatGPT,36,29,65,API log
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 2353]}
"""


def told(text: str, kind: str, folder: Path, **wanted: Any) -> list[Item]:
    file = folder / "trace"
    file.write_text(text)
    made, _ = retold(read(file, kind), Retelling(**{"models": [], "mapping": {}, **wanted}))
    return made.items


def test_each_kind_is_read_by_its_columns(tmp_path: Path) -> None:
    """Seconds after the first request, whatever the file's clock; a failed request is none."""
    assert told(AZURE, "azure", tmp_path, models=["a"]) == [
        Item(0.0, "a", 374, 44), Item(1.5, "a", 396, 109), Item(60.0, "a", 20000, 500),
    ]  # fmt: skip
    assert told(AZURE_2024, "azure", tmp_path, models=["a"]) == [
        Item(0.0, "a", 3, 4), Item(2.49007, "a", 5, 6),
    ]  # fmt: skip
    assert told(BURSTGPT, "burstgpt", tmp_path) == [
        Item(0.0, "ChatGPT", 472, 18), Item(40.0, "GPT-4", 1087, 230), Item(113.0, "ChatGPT", 417, 276),
    ]  # fmt: skip
    assert told(BURSTGPT_3, "burstgpt", tmp_path) == [
        Item(0.0, "GPT-4", 906, 446), Item(51.5, "ChatGPT", 36, 29),
    ]  # fmt: skip
    assert told(MOONCAKE, "mooncake", tmp_path, models=["a"]) == [
        Item(0.0, "a", 6955, 52), Item(3.053, "a", 6472, 26),
    ]  # fmt: skip


def test_columns_that_nobody_asked_for_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(AZURE)
    lines = AZURE.splitlines()
    more = ["NumImages," + lines[0], *("0," + line for line in lines[1:])]
    (tmp_path / "more").write_text("\n".join(more) + "\n")
    plain, wider = read(tmp_path / "trace", "azure"), read(tmp_path / "more", "azure")
    assert (wider.times, wider.prompts, wider.outputs) == (plain.times, plain.prompts, plain.outputs)


def test_the_trace_s_models_get_our_names(tmp_path: Path) -> None:
    mapping = {"GPT-4": "big", "ChatGPT": "small"}
    assert [item.model for item in told(BURSTGPT, "burstgpt", tmp_path, mapping=mapping)] == [
        "small", "big", "small",
    ]  # fmt: skip
    both = {"GPT-4": "one", "ChatGPT": "one"}
    assert {item.model for item in told(BURSTGPT, "burstgpt", tmp_path, mapping=both)} == {"one"}
    dealt = told(BURSTGPT, "burstgpt", tmp_path, models=["mine"])
    assert {item.model for item in dealt} == {"mine"}, "by popularity where models are given"


def test_what_was_left_out_and_what_was_done_is_said(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(BURSTGPT)
    made, left_out = retold(read(tmp_path / "b.csv", "burstgpt"), Retelling([], {}, duration=60.0))
    assert (len(made.items), left_out) == (2, 1)
    assert made.duration == 60.0
    head = {"trace": "b.csv", "kind": "burstgpt", "left_out": 1, "duration": 60.0, "time_scale": 1.0}
    assert head.items() <= made.header.items()


def test_a_part_scaled(tmp_path: Path) -> None:
    """``start`` is in the trace's seconds, ``duration`` in the workload's."""
    part = told(AZURE, "azure", tmp_path, models=["a"], start=1.0, duration=10.0, time_scale=4.0)
    assert part == [Item(2.0, "a", 396, 109)]
    scaled = told(AZURE, "azure", tmp_path, models=["a"], time_scale=0.5, length_scale=0.01)
    assert scaled == [Item(0.0, "a", 4, 1), Item(0.75, "a", 4, 1), Item(30.0, "a", 200, 5)]


ROWS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 5000), st.integers(0, 900), st.sampled_from("xyz")),
    min_size=1,
    max_size=60,
)


@settings(max_examples=examples(60))
@given(ROWS, st.integers(0, 1000), st.integers(1, 1000), st.integers(0, 99))
def test_every_whole_row_of_the_part_is_asked_once(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[int, int, int, str]],
    start: int,
    seconds: int,
    seed: int,
) -> None:
    file = tmp_path_factory.mktemp("trace") / "t.csv"
    lines = [f"{time / 1000},{model},{ins},{outs}" for time, ins, outs, model in rows]
    file.write_text("\n".join(["Timestamp,Model,Request tokens,Response tokens", *lines]))
    trace, first = read(file, "burstgpt"), min(row[0] for row in rows)
    inside = [row for row in rows if start * 1000 <= row[0] - first < (start + seconds) * 1000]
    whole = sorted((m, i, o) for _, i, o, m in inside if i and o)
    wanted = Retelling([], {}, start=float(start), duration=float(seconds), seed=seed)
    if not whole:
        with pytest.raises(ConfigError, match="no request of"):
            retold(trace, wanted)
        return
    made, left_out = retold(trace, wanted)
    assert sorted((item.model, item.prompt_tokens, item.output_tokens) for item in made.items) == whole
    assert left_out == len(inside) - len(whole)
    moments = [item.time for item in made.items]
    assert moments == sorted(moments)
    assert 0 <= moments[0] <= moments[-1] <= seconds


def test_requests_are_dealt_by_the_power_law_and_keep_their_model_in_any_part(tmp_path: Path) -> None:
    count = 20_000
    rows = [f'{{"timestamp": {number}, "input_length": 1, "output_length": 1}}' for number in range(count)]
    text = "\n".join(rows)
    models = ["first", "second", "third"]
    whole = told(text, "mooncake", tmp_path, models=models, alpha=1.0, seed=3)
    counts = Counter(item.model for item in whole)
    for rank, name in enumerate(models, 1):
        expected = count / rank / (1 + 1 / 2 + 1 / 3)
        assert abs(counts[name] - expected) < 6 * expected**0.5
    part = told(text, "mooncake", tmp_path, models=models, alpha=1.0, seed=3, start=10.0)
    assert [item.model for item in part] == [item.model for item in whole[10_000:]]
    other = told(text, "mooncake", tmp_path, models=models, alpha=1.0, seed=4)
    assert [item.model for item in other] != [item.model for item in whole]


GPT = "Timestamp,Model,Request tokens,Response tokens\n"


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("azure", "", r"trace, line 1: column 'TIMESTAMP' is missing, there is none"),
        ("azure", AZURE[:40], "trace holds no requests"),
        (
            "azure",
            BURSTGPT,
            r"line 1: column 'TIMESTAMP' is missing, there is 'Timestamp, Model, .*--kind right",
        ),
        (
            "azure",
            AZURE.replace("GeneratedTokens", "Generated"),
            "line 1: column 'GeneratedTokens' is missing",
        ),
        ("azure", "TIMESTAMP," + AZURE, r"line 1: two columns have the same name"),
        ("azure", AZURE.replace("\n2023-11-16 18:16", "\n\n2023-11-16 18:16"), "line 4: the row is empty"),
        ("azure", AZURE.replace(",109", ""), "line 3: the row has 2 of 3 columns"),
        ("azure", AZURE.replace("396", ""), r"line 3, column ContextTokens: '' is not a number of tokens"),
        (
            "azure",
            AZURE.replace("396", "-1"),
            r"line 3, column ContextTokens: '-1' is not a number of tokens",
        ),
        ("azure", AZURE.replace("109", "1e3"), r"line 3, column GeneratedTokens: '1e3' is not a number of"),
        ("azure", AZURE.replace("109", "10000001"), r"GeneratedTokens: .* from 0 to 10,000,000"),
        ("azure", AZURE.replace("109", "9" * 5000), r"line 3, column GeneratedTokens: '9{39}\.\.\. is not"),
        ("azure", AZURE.replace("18:15:48", "soon"), "line 3, column TIMESTAMP: .* is not a date and time"),
        ("azure", AZURE + '"2023', "line 5 is not CSV"),
        ("burstgpt", GPT + "1,,2,3\n", "line 2, column Model: is empty"),
        ("burstgpt", GPT + "nan,a,2,3\n", "line 2, column Timestamp: 'nan' is not a number"),
        ("burstgpt", GPT + "1,a,2,0\n", "no request of .*trace is in the part"),
        ("burstgpt", MOONCAKE, "line 1: column 'Timestamp' is missing"),
        ("mooncake", AZURE, r"line 1 is not a JSON object: JSON is malformed.*--kind right"),
        ("mooncake", MOONCAKE + "[1]\n", "line 3 is not a JSON object"),
        ("mooncake", MOONCAKE.replace("46", "[" * 100_000), "line 1 is not a JSON object: .*recursion"),
        ("mooncake", MOONCAKE.replace("\n", "\n\n"), "line 2: the row is empty"),
        (
            "mooncake",
            MOONCAKE.replace("output_length", "output"),
            "line 1: column 'output_length' is missing",
        ),
        (
            "mooncake",
            MOONCAKE.replace("6472", "-6472"),
            "line 2, column input_length: -6472 is not a number of",
        ),
        (
            "mooncake",
            MOONCAKE.replace("6472", "6472.5"),
            "line 2, column input_length: 6472.5 is not a number",
        ),
        ("mooncake", MOONCAKE.replace("6472", "true"), "line 2, column input_length: True is not a number"),
        ("mooncake", MOONCAKE.replace("30535", '"x"'), "line 2, column timestamp: 'x' is not a number"),
        ("mooncake", MOONCAKE.replace("30535", "[0]"), r"line 2, column timestamp: \[0\] is not a number"),
    ],
)
def test_a_bad_trace_is_named_by_line_and_column(kind: str, text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        told(text, kind, tmp_path, models=["a"])


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            {"mapping": {"GPT-4": "a"}},
            r"trace, line 2, column Model: 'ChatGPT' is not in --map; add ChatGPT=MODEL",
        ),
        (
            {"mapping": {"GPT-5": "a"}},
            r"--map: .*trace has no 'GPT-5' in column Model, only 'ChatGPT', 'GPT-4'",
        ),
        ({"models": ["a", "a"]}, "--models: needs names, each once"),
        ({"models": ["a"], "alpha": -1.0}, "--alpha"),
        ({"start": -1.0}, "--start -1.0"),
        ({"start": 500.0}, "no request of .* --start and --duration leave"),
        ({"duration": 0.0}, "--duration 0.0"),
        ({"time_scale": 0.0}, "--time-scale 0"),
        ({"length_scale": float("nan")}, "--length-scale nan"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_what_cannot_be_made_of_a_trace_is_named(wanted: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        told(BURSTGPT, "burstgpt", tmp_path, **wanted)


def test_files_and_kinds_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the trace .*: No such file"):
        read(tmp_path / "none.csv", "azure")
    with pytest.raises(ConfigError, match="--kind 'azur': say what the trace is: azure, burstgpt, mooncake"):
        read(tmp_path / "none.csv", "azur")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        read(tmp_path / "b.csv", "azure")
    with pytest.raises(ConfigError, match="a trace of kind azure does not say its models: say --models"):
        told(AZURE, "azure", tmp_path)


@settings(max_examples=examples(150))
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_damaged_trace_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    """Only muxd's own sentence may come out, and it names the file."""
    good = {"azure": AZURE, "burstgpt": BURSTGPT, "mooncake": MOONCAKE}[kind].encode()
    start = data.draw(st.integers(0, len(good)))
    end = start + data.draw(st.integers(0, 4))
    file = tmp_path_factory.mktemp("damaged") / "t"
    file.write_bytes(good[:start] + data.draw(st.binary(max_size=4)) + good[end:])
    refusal = refused(file, kind)
    assert refusal is None or str(file) in refusal


def refused(file: Path, kind: str) -> str | None:
    try:
        retold(read(file, kind), Retelling(["a"], {}))
    except ConfigError as error:
        return error.message
    return None
