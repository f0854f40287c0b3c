"""Hooks, workflow, lock and coverage: what a developer runs is what `make check` and `make test` run."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import audit
import coverage_by_room
import lock
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements-dev.lock").read_text()
PINS = {name: version for name, version in (line.split("==") for line in LOCK.splitlines() if line[0] != "#")}


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, without the path of the environment."""
    (text,) = re.findall(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    return [line.strip().removeprefix("$(BIN)/") for line in text.splitlines()]


def test_the_hooks_run_what_make_check_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    entries = [re.split(" --", hook["entry"].removeprefix(".venv/bin/"))[0] for hook in local["hooks"]]
    checked = [command.replace(" --check", "").removesuffix(" .") for command in recipe("check")]
    assert sorted(entries) == sorted(checked)


def test_the_workflow_runs_what_every_change_is_landed_with() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    steps: list[dict[str, Any]] = jobs["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    (python,) = [step["with"]["python-version"] for step in steps if "with" in step]
    assert python in PROJECT["project"]["requires-python"]


def test_a_workflow_audits_what_is_locked() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "audit.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["audit"]["steps"] if "run" in step] == ["make audit"]
    names = {Requirement(pin).name for pin in audit.pins()}
    assert names >= {*PINS, "torch", "triton"}


FLAW = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], audit.NOTHING, "1 packages, no known vulnerability"),
        ([{"name": "a", "version": "1", "vulns": [FLAW]}], audit.FOUND, "a 1: PYSEC-1, mended in 2.0"),
        ([{"name": "a", "skip_reason": "not on PyPI"}], audit.UNKNOWN, "not audited: a"),
        (
            [{"name": "a", "skip_reason": "x"}, {"name": "b", "version": "1", "vulns": [FLAW]}],
            audit.FOUND,
            "b 1: PYSEC-1, mended in 2.0\nnot audited: a",
        ),
    ],
)
def test_an_audit_fails_for_what_is_known_and_for_what_it_could_not_ask(
    packages: list[dict[str, Any]], code: int, words: str
) -> None:
    ended, sentences = audit.verdict(json.dumps({"dependencies": packages, "fixes": []}), "")
    assert (ended, "\n".join(sentences)) == (code, words)


def test_without_a_network_an_audit_says_so_in_a_sentence() -> None:
    ended, sentences = audit.verdict("", "Traceback\nConnectionError: api.osv.dev\n")
    assert ended == audit.UNKNOWN
    assert len(sentences) == 1
    assert sentences[0].startswith("Nothing was audited")


def requirements() -> list[str]:
    asked: list[str] = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
    return [line for line in asked if not lock.LEFT_OUT.fullmatch(Requirement(line).name)]


@pytest.mark.parametrize("line", requirements())
def test_the_lock_fixes_what_the_project_asks_for(line: str) -> None:
    asked = Requirement(line)
    assert asked.specifier.contains(PINS[canonicalize_name(asked.name)]), "run `make lock`"


def test_the_lock_has_versions_only_and_leaves_torch_to_the_machine() -> None:
    assert lock.HEAD + "".join(f"{name}=={version}\n" for name, version in PINS.items()) == LOCK
    assert not [name for name in PINS if lock.LEFT_OUT.fullmatch(name)]
    assert not [version for version in PINS.values() if not re.fullmatch(r"[\w.]+", version)]


def test_the_lock_is_written_from_what_pip_would_install() -> None:
    names = [
        ("torch", "2.13.0+cpu"),
        ("Jinja2", "3.1.6"),
        ("typing_extensions", "4.16.0+x"),
        ("muxd", "0.2.0"),
    ]
    names += [
        ("nvidia-cublas", "13.0"),
        ("nvidia-ml-py", "13.6"),
        ("cuda-bindings", "13.0"),
        ("triton", "3.7.1"),
    ]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in names]}
    pins = lock.locked(report).removeprefix(lock.HEAD)
    assert pins.splitlines() == ["jinja2==3.1.6", "nvidia-ml-py==13.6", "typing-extensions==4.16.0"]


def test_coverage_is_told_by_room_and_in_all() -> None:
    def summary(lines: int, branches: int, ran: tuple[int, int]) -> dict[str, Any]:
        return {"num_statements": lines, "num_branches": branches,
                "covered_lines": ran[0], "covered_branches": ran[1]}  # fmt: skip

    files = {
        "muxd/pool/ledger.py": summary(10, 4, (9, 3)),
        "muxd/pool/cache.py": summary(6, 0, (6, 0)),
        "models/llama.py": summary(5, 0, (0, 0)),
        "muxd/sizes.py": summary(0, 0, (0, 0)),
    }
    report = {
        "files": {name: {"summary": one} for name, one in files.items()},
        "totals": summary(21, 4, (15, 3)),
    }
    assert [line.split() for line in coverage_by_room.lines(report)] == [
        ["models", "5", "lines", "0", "branches", "0.0", "%"],
        ["pool", "16", "lines", "4", "branches", "90.0", "%"],
        ["sizes.py", "0", "lines", "0", "branches", "100.0", "%"],
        ["all", "21", "lines", "4", "branches", "72.0", "%"],
    ]
