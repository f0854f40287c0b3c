"""``muxctl events``: a table, lines as they come, JSON for programs."""

import json
import re
import subprocess
import sys
from pathlib import Path


def muxctl(path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "muxd.cli.muxctl", *arguments, "--socket", str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_a_table_and_one_line_each(door: Path) -> None:
    head, first, second = muxctl(door, "events").stdout.splitlines()
    assert head.split() == ["TIME", "EVENT", "MODEL", "DEVICE", "DETAIL"]
    words = r"^2023-11-1\d \d\d:\d\d:\d\d   moving   gemma   cuda:0   cuda:0 to cuda:1: by an operator$"
    assert re.match(words, first)
    assert second.split()[2:] == ["policy", "-", "cuda:1", "fcfs"]
    (line,) = muxctl(door, "events", "--follow", "--model", "gemma").stdout.splitlines()
    assert line == first
    lines = muxctl(door, "events", "--follow", "--json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [7, 8]
    assert json.loads(muxctl(door, "events", "--json", "--model", "gemma").stdout)[0]["kind"] == "moving"
    proposed = muxctl(door, "replan", "--dry-run").stdout.splitlines()
    assert proposed[1].split() == ["gemma", "2.5/s", "30", "-", "cuda:0", "cuda:1"]
    assert proposed[2].split() == ["smol", "0/s", "-", "-", "cuda:0", "pinned"]
    assert proposed[-3:] == [
        "gain   1.25 requests/s",
        "cost   0.5 requests",
        "gemma: would move; it pays",
    ]
    moved = muxctl(door, "move", "gemma", "cuda:1")
    assert (moved.stdout, moved.returncode) == ("gemma is on cuda:1.\n", 0)
