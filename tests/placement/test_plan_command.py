"""`muxctl plan` as a user runs it: the table, the files, the picture, and sentences for mistakes."""

import json
import math
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest
import typer
from support.costs import SHAPE, model
from support.tiny import tiny_llama
from typer.testing import CliRunner

from muxd.cli.plan import plan
from muxd.config import Config, ModelConfig
from muxd.config_load import load
from muxd.cost.profile import FORMAT, Device, ModelProfile, Profile, save
from muxd.fleet.pool_sizes import workers_budget
from muxd.messages import KvDtype
from muxd.placement.loads import loads, parse_gpus, read
from muxd.placement.memory import fixed
from muxd.placement.problem import Plan, Problem
from muxd.sim.workload import Item, Workload, write

app = typer.Typer()
app.command()(plan)

MODELS = """
[[model]]
name = "chat"
size = "llama-3-8b"
rate = 6.0
ttft_slo = 5.0
tpot_slo = 0.2

[[model]]
name = "code"
size = "qwen2.5-14b"
rate = 1.5

[[model]]
name = "tiny one"
size = "llama-3.2-1b"
rate = 20.0
prompt_tokens = 40
output_tokens = 60
"""


KEPT = """
[[model]]
name = "{0}"
size = "llama-3-8b"
rate = 8.0
prompt_tokens = 8000
kv_dtype = "{1}"
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.toml").write_text(MODELS)
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    few = [] if "--requests" in args else ["--requests", "20"]
    result = CliRunner().invoke(app, ["--models", "models.toml", *few, *args])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_the_plan_is_shown_compared_and_written(room: Path) -> None:
    methods = "temporal,spatial,greedy,naive,ours"
    shown = run("--gpus", "2xA100-80G", "--compare", methods, "--out", "out", "--picture", "p.svg")
    for word in ("chat", "code", "tiny one", "SERVED/S", "of 27.50 requests/s", "of the rate with targets"):
        assert word in shown
    assert all(f"\n{name} " in shown for name in methods.split(","))
    assert "spatial: 3 models need devices of their own, 2 are not enough" in shown
    assert ElementTree.parse(room / "p.svg").getroot().tag.endswith("svg")
    files = sorted((room / "out").iterdir())
    configs = [load(path) for path in files]
    assert sorted(m.name for config in configs for m in config.model) == ["chat", "code", "tiny one"]
    chat = next(m for config in configs for m in config.model if m.name == "chat")
    assert (chat.ttft_slo, chat.tpot_slo) == (5.0, 0.2)
    assert {(m.share, m.max_running) for config in configs for m in config.model} == {(0, 0)}, "muxd's own"


def test_one_host_with_one_unit_is_one_file(room: Path) -> None:
    run("--gpus", "1xH200", "--out", "out")
    assert [path.name for path in (room / "out").iterdir()] == ["host-0.toml"]
    text = (room / "out" / "host-0.toml").read_text()
    assert "CUDA_VISIBLE_DEVICES=0" in text


def test_json_is_the_plan(room: Path) -> None:
    found = msgspec.json.decode(run("--gpus", "2xA100-80G", "--json", "--compare", "greedy"), type=Plan)
    assert {member.model for member in found.members} == {"chat", "code", "tiny one"}
    assert found.method == "ours"


def test_an_overloaded_model_is_said_and_its_json_is_a_plan(room: Path) -> None:
    (room / "models.toml").write_text(MODELS.replace("rate = 6.0", "rate = 600.0"))
    found = msgspec.json.decode(run("--gpus", "1xA100-80G", "--json"), type=Plan)
    first = {member.model: member.ttft for member in found.members}
    chat = next(member for member in found.members if member.model == "chat")
    assert chat.throughput < chat.rate
    assert first["chat"] is None
    assert all(math.isfinite(ttft) for ttft in first.values() if ttft is not None)
    row = next(line for line in run("--gpus", "1xA100-80G").splitlines() if " chat " in line)
    assert "overloaded" in row


def test_a_workload_says_rates_and_lengths(room: Path) -> None:
    items = [Item(i / 2, "chat", 100 + i, 50) for i in range(20)] + [Item(10.0, "code", 7, 9)]
    write(room / "w.jsonl", Workload(items, {"duration": 20.0}))
    found = msgspec.json.decode(run("--gpus", "2xA100-80G", "--json", "--workload", "w.jsonl"), type=Plan)
    rates = {member.model: member.rate for member in found.members}
    assert rates == {"chat": 1.0, "code": 0.05, "tiny one": 20.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[model]]\nname = "a"\nsize = "llama-3-8b"\nrate = 1.0\nspeed = 3', "speed"),
        ('[[model]]\nname = "a"\nsize = "llama-9"\nrate = 1.0', "no model 'llama-9' in the catalogue"),
        ('[[model]]\nname = "a"\nrate = 1.0', "give one of size"),
        ('[[model]]\nname = "a"\nsize = "llama-3-8b"', "rate is missing"),
        ('[[model]]\nname = "a"\nsize = "llama-3-8b"\nrate = -1.0', "model.rate (a): -1.0 must be above 0"),
        ('[[model]]\nname = "a"\nsize = "llama-3-8b"\nrate = 1\nttft_slo = -1.0', "ttft_slo must not be"),
        ('[[model]]\nname = "a"\nsize = "llama-3-8b"\nrate = "x"', "Expected `float`"),
        ('[[model]]\nname = "a"\npath = "nowhere"\nrate = 1.0', "nowhere is not a folder"),
        ("[[model]\n", "not valid TOML"),
    ],
)
def test_a_wrong_models_file_is_a_sentence(room: Path, text: str, said: str) -> None:
    (room / "models.toml").write_text(text)
    shown = run("--gpus", "1xA100-80G", code=1)
    assert shown.startswith("muxctl: ")
    assert said in shown


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpus", "A100"], 'write a count, a kind and a memory, such as "8xA100-80G"'),
        (["--gpus", "8xB500"], "how much memory? Write 8xB500-NG"),
        (["--gpus", "8xB500-96G"], "--gpus 'B500': known are a10, a100"),
        (["--gpus", "1xA100-8G"], "chat: needs 18.4 GB on each of 1 GPUs"),
        (["--gpus", "8xB500-96G"], "describe others in a file (--device)"),
        (["--gpus", "2xA100", "--compare", "magic"], "--compare 'magic': known are ours, greedy"),
        (["--gpus", "2xA100", "--method", "spatial"], "3 models need devices of their own"),
        (["--gpus", "2xA100", "--picture", "p.pdf"], "a picture is a .svg or a .png file"),
        (["--gpus", "2xA100", "--table", "t.json", "--cost", "c.json"], "give one of them"),
        (["--gpus", "2xA100", "--table", "t.json"], "cannot read the latency table t.json"),
        (["--gpus", "2xA100", "--out", "models.toml"], "cannot write"),
    ],
)
def test_a_wrong_option_is_a_sentence(room: Path, args: list[str], said: str) -> None:
    shown = run(*args, code=1)
    assert "muxctl: " in shown
    assert said in shown


def test_a_missing_models_file_is_named(room: Path) -> None:
    (room / "models.toml").unlink()
    assert "cannot read models.toml" in run("--gpus", "1xA100", code=1)
    with pytest.raises(Exception, match="cannot read"):
        read(Path("models.toml"))


def test_devices_are_written_as_people_do() -> None:
    gpus = parse_gpus("8xA100-80G", hosts=4)
    assert (gpus.kind, gpus.memory, gpus.count) == ("A100", 80 * 10**9, 32)
    assert parse_gpus("4xh200").memory == 141 * 10**9
    assert parse_gpus("2xA100-40GB").memory == 40 * 10**9


def test_keys_and_values_of_a_byte_cost_less_and_are_written_down(room: Path) -> None:
    """Two models of one size: each its own costs, and the plan's file keeps the type."""
    (room / "models.toml").write_text(KEPT.format("own", "auto") + KEPT.format("kept", "fp8"))
    run("--gpus", "1xH200", "--out", "out")
    config = load(room / "out" / "host-0.toml", env={})
    assert {model.name: model.kv_dtype for model in config.model} == {"own": "auto", "kept": "fp8"}
    found = {}
    for kind in ("auto", "fp8"):
        (room / "models.toml").write_text(KEPT.format("m", kind))
        plan = json.loads(run("--gpus", "1xH200", "--json"))
        found[kind] = plan["units"][0]["members"][0]
    assert found["fp8"]["batch"] == pytest.approx(2 * found["auto"]["batch"], abs=1), "what the pool holds"
    assert found["fp8"]["throughput"] > 1.1 * found["auto"]["throughput"]
    (room / "models.toml").write_text(KEPT.format("m", "int8"))
    assert "kv_dtype" in run("--gpus", "1xH200", code=1)


def test_numbers_of_four_bytes_cost_more_beside_a_model_of_the_same_size(room: Path) -> None:
    """A step of one sequence reads every weight once: twice the bytes, here more than launches take."""
    slow = MODELS.partition('[[model]]\nname = "code"')[0].replace("6.0", "0.01")
    text = slow + slow.replace("chat", "wide") + 'dtype = "float32"\n'
    (room / "models.toml").write_text(text + slow.replace("chat", "half") + 'dtype = "float16"\n')
    shown = run("--gpus", "1xH200", "--json")
    found = {m.model: m for m in msgspec.json.decode(shown, type=Plan).members}
    assert found["wide"].tpot > 1.3 * found["chat"].tpot
    assert found["half"].tpot == pytest.approx(found["chat"].tpot)


@pytest.fixture
def profile(room: Path) -> Path:
    """Of one folder with K and V of two types, the second twice as fast, and of a size of the catalogue."""
    tiny_llama(room / "models" / "smol")

    def measured(folder: str, kv_dtype: KvDtype, decode: float) -> ModelProfile:
        shape = msgspec.structs.replace(SHAPE, kv_dtype=kv_dtype)
        return msgspec.structs.replace(model(1e-4, decode), shape=shape, folder=folder)

    known = {
        "first": measured("smol", "auto", 0.02),
        "kept": measured("smol", "fp8", 0.01),
        "llama-3-8b": measured("", "auto", 0.04),
    }
    save(room / "cost.json", Profile(FORMAT, Device("hand", 2, [50, 100]), known))
    return room / "cost.json"


@pytest.mark.usefixtures("profile")
def test_a_profile_knows_models_by_folder_and_types_as_the_simulator_does(room: Path) -> None:
    text = '[[model]]\nname = "{}"\nrate = 0.01\n{}\n'
    folder = 'path = "models/smol"\n'
    wanted = {"x": folder, "y": folder + 'kv_dtype = "fp8"', "kept": folder, "z": 'size = "llama-3-8b"'}
    (room / "models.toml").write_text("".join(text.format(*item) for item in wanted.items()))
    shown = run("--gpus", "4xA100-80G", "--cost", "cost.json", "--json", "--method", "spatial")
    found = {m.model: m.tpot for m in msgspec.json.decode(shown, type=Plan).members}
    assert found["x"] == pytest.approx(2 * found["y"], rel=0.1)
    assert found["kept"] == pytest.approx(found["y"], rel=0.1), "a profile of the same name comes first"
    assert found["z"] == pytest.approx(4 * found["y"], rel=0.1)


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('path = "models/smol"\ndtype = "float32"', "no costs of 'x y' (smol, float32, auto K and V)"),
        ('size = "llama-3.2-1b"', "no costs of 'x y' (llama-3.2-1b, bfloat16, auto K and V)"),
    ],
)
def test_a_model_that_was_not_measured_is_named_with_those_that_were(
    room: Path, line: str, said: str
) -> None:
    (room / "models.toml").write_text(f'[[model]]\nname = "x y"\nrate = 1.0\n{line}\n')
    shown = run("--gpus", "1xA100-80G", "--cost", "cost.json", code=1)
    assert said in shown
    assert "first (smol, bfloat16, auto K and V), kept (smol, bfloat16, fp8 K and V), llama-3-8b" in shown
    assert "`muxd profile " in shown
    assert " --name 'x y' --dtype " in shown
    assert "--like" not in shown


def muxctl(*args: str) -> subprocess.Popen[str]:
    """The program itself, as a shell starts it."""
    command = [sys.executable, "-m", "muxd.cli.muxctl", "plan", "--models", "models.toml", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_standard_output_is_the_plan_alone(room: Path) -> None:
    """Also where the solver runs, which says hello on its own: a model is late, and all is tried."""
    (room / "models.toml").write_text(MODELS.replace("rate = 6.0", "rate = 600.0"))
    with muxctl("--gpus", "2xA100-80G", "--json") as program:
        out, told = program.communicate()
    assert program.returncode == 0, told
    found = msgspec.json.decode(out, type=Plan)
    assert [trial.policy for trial in found.trials] == ["mux", "temporal", "spatial", "servers", "swap"]
    for line in ("Planning ours ...", "Simulating mux, "):
        assert line in told, "in plain lines, as nobody looks at a terminal"


def test_who_has_enough_gets_the_best_plan_so_far(room: Path) -> None:
    many = "".join(f'[[model]]\nname = "m{i}"\nsize = "llama-3.2-1b"\nrate = {20 + i}.0\n' for i in range(30))
    (room / "models.toml").write_text(many)
    with muxctl("--gpus", "8xA100-80G", "--hosts", "4", "--seconds", "500", "--json") as program:
        assert program.stderr is not None
        assert program.stderr.readline() == "Planning ours ...\n"
        program.send_signal(signal.SIGINT)
        out, told = program.communicate()
    assert program.returncode == 0, told
    assert "Simulating" not in told
    assert len(msgspec.json.decode(out, type=Plan).members) == 30


def test_a_time_that_is_over_ends_the_search_not_the_plan(room: Path) -> None:
    (room / "models.toml").write_text(MODELS.replace("rate = 6.0", "rate = 600.0"))
    shown = run("--gpus", "2xA100-80G", "--seconds", "0.1", "--json")
    assert len(msgspec.json.decode(shown, type=Plan).members) == 3


def test_the_plan_shows_what_each_way_of_serving_keeps(room: Path) -> None:
    shown = run("--gpus", "2xA100-80G")
    rows = shown[shown.index("SIMULATED") :].splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["mux", "temporal", "spatial", "servers", "swap"]
    assert rows[1].split()[1].endswith("%")


def test_nothing_is_simulated_where_nobody_wants_it(room: Path) -> None:
    found = msgspec.json.decode(run("--gpus", "2xA100-80G", "--requests", "0", "--json"), type=Plan)
    assert (len(found.members), found.trials) == (3, ())


def test_a_gpu_of_ones_own_is_described_in_a_file(room: Path) -> None:
    (room / "gpu.toml").write_text(
        'name = "X1"\nflops = 3.0e14\nbandwidth = 2.0e12\nlink = 3.0e11\nmemory = 80e9\n'
    )
    found = msgspec.json.decode(run("--gpus", "2xX1", "--device", "gpu.toml", "--json"), type=Plan)
    assert len(found.members) == 3
    assert "cannot read none.toml" in run("--gpus", "2xX1", "--device", "none.toml", code=1)
    both = run("--gpus", "2xX1", "--device", "gpu.toml", "--table", "t.json", code=1)
    assert "--table, --cost and --device: give one of them" in both


def test_a_plan_leaves_room_for_the_processes_that_the_daemon_starts(room: Path) -> None:
    """One for each model on a GPU in parts: what is left for K and V is what the daemon would count."""
    (room / "models.toml").write_text(MODELS)
    found = msgspec.json.decode(run("--gpus", "1xH200", "--json"), type=Plan)
    problem = Problem(tuple(loads(read(Path("models.toml")), Path("models.toml"))), parse_gpus("1xH200"))

    class Parted:
        memory, rungs, parts = problem.gpus.memory, (25, 50, 75, 100), 4

    config = Config(model=[ModelConfig(model.name, model.name) for model in problem.models])
    budget = workers_budget(config, Parted())
    assert budget.workers == 1
    held = sum(fixed(model, 1, budget) for model in problem.models)
    assert found.units[0].pool_bytes == int(0.95 * problem.gpus.memory) - held
