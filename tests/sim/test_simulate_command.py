"""`muxctl workload` and `muxctl simulate` as a user runs them."""

from pathlib import Path

import msgspec
import pytest
from support.costs import model
from typer.testing import CliRunner

from muxd.cli.muxctl import app
from muxd.cost.profile import FORMAT, Device, Profile, save
from muxd.sim.report import Report
from muxd.sim.workload import read


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workload and, where MUXD_HOME points, a profile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUXD_HOME", str(tmp_path / "home"))
    profile = Profile(FORMAT, Device("hand", 2, [50, 100]), {"a": model(), "b": model()})
    save(tmp_path / "home" / "cost.json", profile)
    made = run("workload", "w.jsonl", "--models", "a,b", "--rate", "5", "--duration", "20",
               "--lengths", "uniform:4-60,2-20")  # fmt: skip
    assert "requests over 20 s in w.jsonl" in made
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, result.output
    return result.output


def test_a_workload_is_simulated_and_reported(room: Path) -> None:
    shown = run("simulate", "--workload", "w.jsonl", "--json", "r.json", "--html", "r.html")
    report = msgspec.json.decode((room / "r.json").read_bytes(), type=Report)
    workload = read(room / "w.jsonl")
    assert report.total.served == report.total.requests == len(workload.items)
    assert report.workload == workload.header
    assert [line.split()[0] for line in shown.splitlines()[:4]] == ["MODEL", "a", "b", "all"]
    assert "simulated, policy mux" in shown
    assert (room / "r.html").exists()


def test_json_to_standard_output_is_the_report_alone(room: Path) -> None:
    shown = run("simulate", "--workload", "w.jsonl", "--json", "-")
    assert msgspec.json.decode(shown, type=Report).kind == "simulated"


def test_a_configuration_decides_pool_and_queues(room: Path) -> None:
    models = "".join(f'[[model]]\nname = "{name}"\npath = "x"\nmax_queue = 1\n' for name in "ab")
    (room / "muxd.toml").write_text(f"[scheduler]\nlook_ahead = 4\n{models}")
    run("workload", "burst.jsonl", "--models", "a,b", "--rate", "500", "--duration", "2")
    shown = run("simulate", "--workload", "burst.jsonl", "--config", "muxd.toml", "--json", "-")
    assert msgspec.json.decode(shown, type=Report).total.refused > 100


def test_costs_of_other_weights_than_configured_are_refused(room: Path) -> None:
    (room / "muxd.toml").write_text('[[model]]\nname = "a"\npath = "x"\nweights = "int4"\n')
    said = run("simulate", "--workload", "w.jsonl", "--config", "muxd.toml", code=1)
    assert "has 'a' with weights = \"file\"" in " ".join(said.split())


def test_a_workload_is_rescaled(room: Path) -> None:
    run("workload", "fast.jsonl", "--from", "w.jsonl", "--time-scale", "0.5", "--length-scale", "2")
    before, after = read(room / "w.jsonl"), read(room / "fast.jsonl")
    assert [item.time for item in after.items] == [item.time * 0.5 for item in before.items]
    assert after.items[0].prompt_tokens == 2 * before.items[0].prompt_tokens


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["simulate", "--workload", "none.jsonl"], 1, "cannot read the workload none.jsonl"),
        (["simulate", "--workload", "w.jsonl", "--cost", "none.json"], 1, "cannot read the cost profile"),
        (["simulate", "--workload", "w.jsonl", "--policy", "best"], 1, "policy: 'best' is not one of mux"),
        (["simulate", "--workload", "w.jsonl", "--like", "x"], 1, "write MODEL=PROFILED"),
        (["simulate", "--workload", "w.jsonl", "--png", "r.pdf"], 1, "a plot is a .png"),
        (["simulate", "--workload", "w.jsonl", "--json", "no/r.json"], 1, "cannot write no/r.json"),
        (["workload", "x.jsonl"], 2, "say what to make it from: --models a,b,c"),
        (["workload", "x.jsonl", "--models", "a", "--rate", "-1"], 1, "--rate -1.0"),
        (["workload", "x.jsonl", "--models", "a", "--rate", "0.001"], 1, "no request arrives within"),
    ],
)
def test_what_cannot_be_is_one_sentence(args: list[str], code: int, reason: str, room: Path) -> None:
    shown = run(*args, code=code)
    assert reason in shown
    assert "Traceback" not in shown


def test_an_unmeasured_model_is_named(room: Path) -> None:
    run("workload", "c.jsonl", "--models", "c", "--rate", "5")
    assert "has no model 'c', only: a, b" in run("simulate", "--workload", "c.jsonl", code=1)
    assert "simulated" in run("simulate", "--workload", "c.jsonl", "--like", "c=a")


def test_a_model_that_is_cut_is_refused_by_name(room: Path) -> None:
    """Its batches would cost what the profile says of one device."""
    (room / "muxd.toml").write_text(
        '[pool]\nbytes = "1G"\n[[device]]\nname = "cuda:0+cuda:1"\n'
        '[[model]]\nname = "a"\npath = "a"\ntp = 2\n[[model]]\nname = "b"\npath = "b"\n'
    )
    shown = run("simulate", "--workload", "w.jsonl", "--config", "muxd.toml", code=1)
    assert "model.tp: 2 (a): a profile is of one device" in shown
