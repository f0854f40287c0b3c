"""muxctl as people and programs run it, against a real daemon door."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from support.scripted_daemon import MODELS, PROCESSES, scripted

from muxd.admin.schemas import ModelInfo, ProcessInfo, Status
from muxd.fleet.steps import Step
from muxd.models.families.table import FAMILIES, HEADLESS, WRAPPERS


def muxctl(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "muxd.cli.muxctl", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, "COLUMNS": "200", **env},
    )


def at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "muxd.sock"


def test_tables_for_people(door: Path) -> None:
    models = muxctl("models", "--socket", str(door))
    processes = muxctl("ps", MUXD_SOCKET=str(door))
    assert (models.returncode, models.stderr) == (0, "")
    assert models.stdout.splitlines() == [
        "MODEL       STATE    SHARE   WEIGHTS   KV USED/MIN/MAX   RUN   WAIT   TTFT99   TOKENS   SINCE   "
        "DETAIL",
        "smol_lm.2   ready    50%     269M      12M/256M/1G       3     0      42ms     98765    1h",
        "gemma       failed   -       0         0/0/1G            0     0      -        0        5s      "
        "model.safetensors: missing",
    ]
    assert processes.stdout.splitlines() == [
        "PROCESS     PID    PHASES           CORES   MEMORY   CPU       RESTARTS   UP",
        "daemon      4710   -                0       80M      12.3s     0          1h",
        "smol_lm.2   4711   prefill+decode   1       200M     1000.5s   2          59s",
    ]


def test_status_for_people(path: Path) -> None:
    with scripted(path) as process:
        shown = muxctl("status", "--socket", str(path)).stdout
    assert shown.splitlines() == [
        f"muxd       0.2.0, pid {process.pid}, up 1h",
        "http       http://127.0.0.1:8000",
        "policy     mux, 2 cores",
        "pool       1G in 131072 blocks of 8K; 98304 free (75 %), 100 cached",
        "models     1 failed, 1 ready",
        "requests   3 running, 1 waiting; 120 served, 4 refused, 2 cancelled, 1 failed",
    ]


def test_json_for_programs_is_everything(path: Path) -> None:
    with scripted(path) as process:
        models, processes, status = (
            muxctl(verb, "--json", "--socket", str(path)).stdout for verb in ("models", "ps", "status")
        )
        pid = process.pid
    assert msgspec.json.decode(models, type=list[ModelInfo]) == MODELS
    assert msgspec.json.decode(processes, type=list[ProcessInfo]) == PROCESSES
    assert msgspec.json.decode(status, type=Status).pid == pid


def test_version_of_both_and_of_one(path: Path) -> None:
    assert muxctl("version", "--socket", str(path)).stdout == "muxctl 0.2.0\nmuxd   not running\n"
    with scripted(path):
        both = muxctl("version", "--json", "--socket", str(path))
    assert msgspec.json.decode(both.stdout) == {"muxctl": "0.2.0", "muxd": "0.2.0"}


@pytest.mark.parametrize(
    "verb",
    [
        "ps",
        "models",
        "status",
        "stop",
        "quota",
        "policy",
        "why x",
        "trace x",
        "load x",
        "unload x",
        "move x y",
        "events",
        "replan",
        "reload",
        "drain",
        "logs",
        "keys",
    ],
)
def test_a_missing_daemon_is_one_sentence_and_exit_1(path: Path, verb: str) -> None:
    done = muxctl(*verb.split(), MUXD_SOCKET=str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        f"muxctl: no muxd is running at {path}. Start one with `muxd serve --config"
    )
    assert done.stderr.count("\n") == 1


def test_stop_waits_for_the_end(path: Path) -> None:
    with scripted(path) as process:
        done = muxctl("stop", "--socket", str(path))
        assert process.poll() == 0  # gone before muxctl was
        assert (done.returncode, done.stdout) == (0, f"muxd (pid {process.pid}) has stopped.\n")


def test_stop_gives_up_with_a_sentence(path: Path) -> None:
    with scripted(path, deaf=True) as process:
        done = muxctl("stop", "--timeout", "0.1", "--socket", str(path))
        assert process.poll() is None
        assert done.returncode == 1
        assert (
            done.stderr
            == f"muxctl: muxd (pid {process.pid}) is still running 0.1 s after it was asked to stop\n"
        )


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        ("load good", 0, "good is ready.\n", ""),
        ("load --name new --path models/new", 0, "new is ready.\n", ""),
        ("load good --keep", 0, "good is ready, and stays over a restart.\n", ""),
        ("load gone", 1, "", "muxctl: there is no model 'gone'\n"),
        ("load broken", 1, "", "muxctl: model.safetensors: missing\n"),
        ("unload good", 0, "good is unloaded; `muxctl load good` brings it back.\n", ""),
        (
            "load",
            2,
            "",
            "muxctl: say which model: muxctl load MODEL, or muxctl load --name NAME --path FOLDER\n",
        ),
        ("load good --path x", 2, "", "muxctl: say which model:"),
        ("load --name x --path y --dtype int8", 2, "", "muxctl: --dtype 'int8' is none of auto, bfloat16,"),
        ("load --name x --path y --kv-dtype int8", 2, "", "muxctl: --kv-dtype 'int8' is none of auto, fp8\n"),
        ("sleep good", 0, "good is asleep; a request or `muxctl wake good` wakes it.\n", ""),
        ("wake good", 0, "good is ready.\n", ""),
        ("wake full", 1, "", "muxctl: there is no room for full\n"),
        (
            "pin good",
            0,
            "good never sleeps by itself, once `muxctl wake` or a request has woken it.\n",
            "",
        ),
        ("unpin good", 0, "good may sleep where its place is needed.\n", ""),
        ("reload", 1, "configuration not reloaded: muxd.toml: line 3\n", ""),
        ("drain --end", 0, "muxd takes requests.\n", ""),
        (
            "drain",
            0,
            "All requests are answered: `muxctl drain --end` has muxd take new ones, "
            "`muxctl stop` ends it.\n",
            "2 left\n1 left\n",
        ),
        ("logs -n 1", 0, f"{at(1_700_000_002)} INFO    loaded smol\n", ""),
        (
            "logs -n 2 -f",
            0,
            f"{at(1_700_000_001)} WARNING slow  [2J\nTraceback\n{at(1_700_000_002)} INFO    loaded smol\n",
            "",
        ),
        ("completion tcsh", 2, "", "muxctl: SHELL: 'tcsh' must be bash, zsh or fish\n"),
        ("status --audit", 1, "3 blocks lost: [7, 8, 9]\n", ""),
    ],
)
def test_load_unload_and_audit_in_words_and_exit_codes(
    door: Path, arguments: str, code: int, out: str, err: str
) -> None:
    done = muxctl(*arguments.split(), MUXD_SOCKET=str(door))
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.startswith(err) if err else not done.stderr


def test_a_name_alone_is_a_pulled_or_imported_folder(door: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    done = muxctl("load", "--name", "mine", MUXD_SOCKET=str(door), MUXD_HOME=str(tmp_path))
    other = muxctl("load", "--name", "other", MUXD_SOCKET=str(door), MUXD_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "mine is ready.\n")
    assert (other.returncode, other.stdout) == (2, "")


def test_load_in_json_is_its_last_step(door: Path) -> None:
    done = muxctl("load", "good", "--json", MUXD_SOCKET=str(door))
    assert msgspec.json.decode(done.stdout, type=Step) == Step("good", "ready", 4 << 20, 4 << 20)


def test_the_architectures_that_are_known_without_a_daemon(door: Path) -> None:
    shown = muxctl("models", "--supported", "--socket", str(door))
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in shown.stdout.splitlines() if line}
    assert lines["ARCHITECTURE"] == ["MODEL_TYPE", "CPU", "GPU", "GGUF", "MODELS"]
    assert lines["GraniteForCausalLM"][:5] == ["granite", "native,", "torch", "interpreter", "granite"]
    assert lines["GptOssForCausalLM"][4] == "gpt-oss"
    assert lines["BertModel"][:4] == ["bert", "torch", "interpreter", "-"]
    rows = json.loads(muxctl("models", "--supported", "--json").stdout)
    names = [row["architecture"] for row in rows]
    assert names == sorted(FAMILIES.keys() | WRAPPERS.keys() | HEADLESS.keys())
    assert rows[names.index("Qwen3Model")]["cpu"] == ["torch"]


def test_the_socket_may_stand_before_the_command(door: Path) -> None:
    for before in (["--socket", str(door)], [f"--socket={door}"]):
        done = muxctl(*before, "keys", MUXD_SOCKET="/nowhere")
        assert done.stdout.splitlines() == [
            "KEY     MODELS         ACTIONS   AT ONCE   WEIGHT",
            "alice   *              yes       -         1",
            "bob     gemma, smol*   no        4         0.5",
        ], done.stderr


def test_a_socket_without_a_command_shows_what_commands_there_are() -> None:
    for alone in (["--socket", "/x"], ["--socket=/x"], ["--socket"]):
        done = muxctl(*alone)
        assert done.returncode == muxctl().returncode
        assert "install-service" in done.stdout + done.stderr


def test_a_shell_completes_commands(path: Path) -> None:
    script = muxctl("completion", "bash").stdout
    assert "complete -o default -F _muxctl_completion muxctl" in script
    asked = {"_MUXCTL_COMPLETE": "complete_bash", "COMP_WORDS": "muxctl re", "COMP_CWORD": "1"}
    program = "from muxd.cli.muxctl import app; app(prog_name='muxctl')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["replan", "reload"]
