"""muxctl why, trace, quota and policy as people and programs run them, against a real daemon door."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from support.scripted_daemon import QUOTAS, TRACE, WHY

from muxd.admin.schemas import ModelInfo, PolicyState, QuotaInfo
from muxd.cli.explain import sentence, story
from muxd.cli.tables import models
from muxd.config import ModelConfig
from muxd.engine.chrome import chrome
from muxd.engine.trace import RequestTimes, Stay


def muxctl(door: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxctl", *arguments, "--socket", str(door)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, "COLUMNS": "200"},
    )


def test_why_is_a_table_and_a_sentence(door: Path) -> None:
    done = muxctl(door, "why", "from/client?1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "chatcmpl-5-0 (x-request-id from/client?1)",
        "smol_lm.2, served; 40 prompt tokens (32 cached), 12 generated",
        "",
        "WHERE                         SECONDS   PART",
        "queued for its share          0.310     16%",
        "queued for its turn           0.040     2%",
        "prefill                       0.150     8%",
        "recomputed after preemption   0.200     10%",
        "decode                        1.100     55%",
        "between decode steps          0.200     10%",
        "total                         2.000     100%",
        "",
        "It waited 0.31 s for its share of the device while gemma prefilled, was prefilled in 0.35 s, "
        "decoded for 1.10 s, sat out 0.20 s between decode steps while prefills and other models ran, "
        "was preempted once and recomputed; its first token came after 0.50 s.",
    ]


def test_why_for_programs_is_everything(door: Path) -> None:
    done = muxctl(door, "why", "chatcmpl-5-0", "--json")
    assert msgspec.json.decode(done.stdout, type=list[RequestTimes]) == [WHY]


def test_an_unknown_request_is_a_sentence(door: Path) -> None:
    done = muxctl(door, "why", "chatcmpl-6")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "muxctl: no request 'chatcmpl-6'\n")


def times(**changed: object) -> RequestTimes:
    still = dict(waits={}, prefill=0.0, recompute=0.0, decode=0.0, held=0.0, preemptions=0, beside={})
    return msgspec.structs.replace(WHY, **{**still, "ttft": None, "total": 1.0, **changed})


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (
            times(state="refused", total=0.0, detail="a already has 3 requests waiting"),
            "Refused: a already has 3 requests waiting.",
        ),
        (times(state="cancelled", total=0.0), "It took no time worth telling."),
        (
            times(state="failed", detail="killed by signal 9", decode=1.0),
            "It decoded for 1.00 s. It has failed: killed by signal 9.",
        ),
        (
            times(waits={"rows": 0.9}, prefill=0.1),
            "It waited 0.90 s for memory (its quota, or what others left), was prefilled in 0.10 s.",
        ),
        (times(waits={"slots": 1.0}), "It waited 1.00 s for one of its model's max_running slots."),
        (times(waits={"busy": 1.0}), "It waited 1.00 s for its own model to finish other batches."),
        (
            times(waits={"turn": 1.0}, beside={"a": 0.4, "b": 0.5, "c": 0.1}),
            "It waited 1.00 s for its model's turn while b and a prefilled.",
        ),
        (
            times(waits={"worker": 1.0}, reruns=1, beside={"a": 1.0}),
            "It waited 1.00 s for its model's worker to be ready, lost its worker once and went on with "
            "the next.",
        ),
        (times(waits={"novel": 1.0}), "It waited 1.00 s novel."),  # of a newer daemon
    ],
)
def test_the_sentence_tells_what_cost_most(one: RequestTimes, text: str) -> None:
    assert sentence(one) == text
    assert story(one).endswith(text)
    assert ("WHERE" in story(one)) == (one.state != "refused")


def test_a_request_that_was_moved_is_told_by_device_in_order() -> None:
    waits = {"turn": 0.5, "worker": 0.25}
    stays = [
        Stay("cuda:0", 100.0, 0.6, {"turn": 0.5}, 0.1, 0.0, 0.0, 0.0),
        Stay("cuda:1", 100.6, 0.4, {"worker": 0.25}, 0.0, 0.0, 0.15, 0.0),
    ]
    one = times(waits=waits, prefill=0.1, decode=0.15, stays=stays, cached_tokens=0)
    assert story(one).splitlines() == [
        "chatcmpl-5-0 (x-request-id from/client?1)",
        "smol_lm.2, served; 40 prompt tokens (0 cached), 12 generated",
        "",
        "DEVICE   WHERE                   SECONDS   PART",
        "cuda:0   queued for its turn     0.500     50%",
        "cuda:0   prefill                 0.100     10%",
        "cuda:1   queued for its worker   0.250     25%",
        "cuda:1   decode                  0.150     15%",
        "         total                   1.000     100%",
        "",
        "It waited 0.50 s for its model's turn, waited 0.25 s for its model's worker to be ready, was "
        "prefilled in 0.10 s, decoded for 0.15 s, was moved from cuda:0 to cuda:1 after 0.60 s.",
    ]


def test_a_model_that_is_cut_is_told_with_its_devices() -> None:
    one = times(decode=1.0, adapter="lora", cut_over=["cuda:0", "cuda:1"])
    assert story(one).splitlines()[1].startswith("lora on smol_lm.2 over cuda:0, cuda:1, served; 40 prompt")


def test_trace_writes_what_the_viewers_read_and_replaces_nothing(door: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    done = muxctl(door, "trace", str(file))
    assert done.returncode == 0
    assert done.stdout.startswith(f"Wrote 2 batches of the last 10 s to {file}.\n")
    assert "ui.perfetto.dev" in done.stdout
    assert "chrome://tracing" in done.stdout
    assert msgspec.json.decode(file.read_bytes()) == msgspec.json.decode(msgspec.json.encode(chrome([TRACE])))
    file.write_text("mine")
    again = muxctl(door, "trace", str(file))
    assert (again.returncode, file.read_text()) == (1, "mine")
    assert again.stderr == f"muxctl: {file} exists; choose another name, or --force to replace it\n"
    assert muxctl(door, "trace", str(file), "--force").returncode == 0
    assert file.read_text() != "mine"
    nowhere = muxctl(door, "trace", str(tmp_path / "no" / "where.json"))
    assert nowhere.stderr.startswith("muxctl: cannot write ")


def test_quota_is_a_table_in_bytes_and_percent(door: Path) -> None:
    assert muxctl(door, "quota").stdout.splitlines() == [
        "MODEL       MIN        QUOTA      MAX        WEIGHT   USED       CACHED   BORROWED",
        "smol_lm.2   256M 25%   512M 50%   1G 100%    2        300M 29%   16M 2%   44M 4%",
        "gemma       0          256M 25%   512M 50%   1        0          0        0",
    ]
    one = muxctl(door, "quota", "gemma", "--json").stdout
    assert msgspec.json.decode(one, type=list[QuotaInfo]) == [QUOTAS[1]]


def test_quota_changes_what_is_named(door: Path) -> None:
    rows = msgspec.json.decode(
        muxctl(door, "quota", "gemma", "--weight", "4", "--json").stdout, type=list[QuotaInfo]
    )
    assert [(row.model, row.weight) for row in rows] == [("gemma", 4.0)]
    nameless = muxctl(door, "quota", "--min", "1M")
    assert nameless.returncode == 1
    assert nameless.stderr.startswith("muxctl: name the model whose quota is to change")
    unknown = muxctl(door, "quota", "nope")
    assert unknown.stderr == "muxctl: no model 'nope'; there are: smol_lm.2, gemma\n"


def test_policy_shows_changes_and_refuses(door: Path) -> None:
    assert muxctl(door, "policy").stdout == "mux (others: temporal, spatial)\n"
    changed = msgspec.json.decode(muxctl(door, "policy", "temporal", "--json").stdout, type=PolicyState)
    assert changed.policy == "temporal"
    busy = muxctl(door, "policy", "spatial")
    assert (busy.returncode, busy.stdout) == (1, "")
    assert busy.stderr == "muxctl: 3 requests are being served; wait until muxd is idle\n"


def test_models_have_a_column_for_targets_only_where_there_is_one() -> None:
    row = ModelInfo("a", "ready", "", True, 1, 50, 0, 0, 0, 0, 0, 0, None, 0, 5, ModelConfig("a", "/m"))
    met = replace(row, name="b", config=ModelConfig("b", "/m", ttft_slo=1.0), goodput=0.977)
    new = replace(row, name="c", config=ModelConfig("c", "/m", tpot_slo=1.0))
    assert "SLO" not in models([row])
    lines = models([row, met, new]).splitlines()
    assert [line.split()[-2] for line in lines[1:]] == ["-", "98%", "-"]
    assert "SLO   SINCE" in lines[0]
