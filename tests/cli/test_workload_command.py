"""`muxctl workload` as a user types it."""

import inspect
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from muxd.cli.muxctl import app
from muxd.cli.workload import workload
from muxd.sim import workload as files
from muxd.sim.workload import read

TRAFFIC = """
duration = 300
[[model]]
name = "chat"
rate = 5
cv = 3
phases = [[0, 100, 1.0], [100, 200, 0.0]]
[[model]]
name = "batch"
rate = 2
lengths = "lognormal:4000,150"
"""
TRACE = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,Conversation log
46,ChatGPT,700,0,700,API log
118,ChatGPT,417,276,693,API log
"""


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traffic.toml").write_text(TRAFFIC)
    (tmp_path / "trace.csv").write_text(TRACE)
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["workload", "w.jsonl", *args])
    assert result.exit_code == code, result.output
    return result.output


def test_each_model_has_its_own_traffic(room: Path) -> None:
    shown = run("--traffic", "traffic.toml", "--lengths", "constant:8,4", "--seed", "3")
    made = read(room / "w.jsonl")
    assert made.duration == 300
    chat = [item for item in made.items if item.model == "chat"]
    assert {(item.prompt_tokens, item.output_tokens) for item in chat} == {(8, 4)}
    assert not [item for item in chat if 100 <= item.time < 200]
    rows = [line.split() for line in shown.splitlines()]
    assert rows[0] == ["MODEL", "REQUESTS", "PER", "SECOND", "TOKENS", "IN", "OUT"]
    counts = Counter(item.model for item in made.items)
    assert [(row[0], int(row[1])) for row in rows[1:3]] == counts.most_common()
    assert ["chat", str(len(chat)), f"{len(chat) / 300:.3f}", "8", "4"] in rows
    assert f"{len(made.items)} requests over 300 s in w.jsonl" in shown


PAGE = Path(files.__file__).with_name("design.md").read_text()


@pytest.mark.parametrize(
    "example",
    [
        (inspect.getdoc(workload) or "").partition("required:")[2],
        PAGE.partition("```toml")[2].partition("```")[0],
    ],
)
def test_the_examples_of_help_and_page_are_traffic(example: str, room: Path) -> None:
    (room / "example.toml").write_text(example)
    run("--traffic", "example.toml")
    assert read(room / "w.jsonl").models == ["chat"]
    assert read(room / "w.jsonl").duration == 3600


def test_a_flag_goes_before_the_file_s_duration(room: Path) -> None:
    run("--traffic", "traffic.toml", "--duration", "50")
    assert read(room / "w.jsonl").duration == 50


def test_a_trace_with_its_models_and_with_ours(room: Path) -> None:
    shown = run("--trace", "trace.csv", "--kind", "burstgpt", "--map", "GPT-4=big, ChatGPT=small")
    assert read(room / "w.jsonl").models == ["small", "big"]
    assert "3 requests over 113 s in w.jsonl; 1 of 0 tokens left out" in shown
    run("--trace", "trace.csv", "--kind", "burstgpt", "--models", "a", "--start", "30", "--duration", "20")
    assert [(item.time, item.model) for item in read(room / "w.jsonl").items] == [(10.0, "a")]


def test_one_request_at_the_start_has_no_rate(room: Path) -> None:
    (room / "trace.csv").write_text("\n".join(TRACE.splitlines()[:2]))
    shown = run("--trace", "trace.csv", "--kind", "burstgpt")
    assert shown.splitlines()[1].split() == ["ChatGPT", "1", "-", "472", "18"]
    assert "1 request over 0 s" in shown


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        ("", 2, "say what to make it from: --models a,b,c, --traffic traffic.toml, --trace FILE or --from"),
        ("--models a --traffic traffic.toml", 2, "--traffic and --models: give one of them"),
        ("--from w.jsonl --trace trace.csv", 2, "--trace and --from: give one of them"),
        ("--traffic traffic.toml --rate 2", 2, "--rate goes with --models, not with --traffic"),
        ("--traffic traffic.toml --map a=b", 2, "--map goes with --trace, not with --traffic"),
        ("--models a --time-scale 2", 2, "--time-scale goes with --trace and --from, not with --models"),
        (
            "--from w.jsonl --seed 2",
            2,
            "--seed goes with --models and --traffic and --trace, not with --from",
        ),
        ("--trace trace.csv", 1, "--kind '': say what the trace is: azure, burstgpt, mooncake"),
        ("--trace trace.csv --kind azure", 1, "trace.csv, line 1: column 'TIMESTAMP' is missing"),
        (
            "--trace trace.csv --kind burstgpt --map GPT-4",
            1,
            "--map 'GPT-4': write each name of the trace once",
        ),
        (
            "--trace trace.csv --kind burstgpt --map x=a,x=b",
            1,
            "--map 'x=b': write each name of the trace once",
        ),
        (
            "--trace trace.csv --kind burstgpt --map GPT-4=b --models a",
            1,
            "--models and --map: give one of them",
        ),
        ("--traffic none.toml", 1, "cannot read none.toml: No such file"),
        ("--traffic trace.csv", 1, "trace.csv is not valid TOML"),
        ("--traffic traffic.toml --duration 0", 1, "--duration 0.0: must be above 0"),
        ("--models a --duration 0", 1, "--duration 0.0: must be above 0"),
        (
            "--models a --lengths lognormal:3,9",
            1,
            "--lengths 'lognormal:3,9': a mean of 3 tokens is not between",
        ),
        ("--models , ", 1, "--models: needs names, each once, not []"),
        ("--models a --rate 0.0001", 1, "no request arrives within 60 s; raise a rate or --duration"),
    ],
)
def test_what_cannot_be_is_one_sentence(args: str, code: int, reason: str, room: Path) -> None:
    shown = run(*args.split(), code=code)
    assert shown.startswith(f"muxctl: {reason}"), shown
    assert len(shown.splitlines()) == 1
    assert not (room / "w.jsonl").exists()
