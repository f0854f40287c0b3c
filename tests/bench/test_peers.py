"""The comparison with other servers: what it asks a live daemon, what it reads off, and the page of it."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec import structs
from support.live import LiveDaemon, live
from support.tiny import tiny_served

from muxd.sim.workload import Item, Workload, prompts

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in (BENCHMARKS, BENCHMARKS / "peers"):
        monkeypatch.syspath_prepend(str(folder))
    import benchy
    import many
    import peer_loads
    import peer_page
    import peers

    return SimpleNamespace(loads=peer_loads, page=peer_page, main=peers, many=many, benchy=benchy)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    folder = tmp_path_factory.mktemp("peers")
    model = tiny_served(folder / "tiny")
    served = "".join(f'[[model]]\nname = "{name}"\npath = "{model}"\n' for name in ("smol", "gemma"))
    with live(f'[pool]\nbytes = "16M"\n{served}', folder) as running:
        yield running


def test_a_load_is_asked_as_often_as_it_says_and_of_its_own_requests_alone(
    peers: Any, daemon: LiveDaemon
) -> None:
    client = peers.loads.Client({"smol": daemon.url, "gemma": daemon.url})
    before = daemon.status().requests.served
    client.first_tokens()
    client.warm()
    assert daemon.status().requests.served - before == 2 + 2 * 16
    load = peers.loads.Load(
        Workload([Item(0.0, "smol", 20, 9)] * 3, {}), times=2, beside=(Item(0.0, "gemma", 20, 5),) * 2
    )
    found = client.measure(load)
    assert daemon.status().requests.served - before == 34 + 2 * 5
    assert found.failed == 0
    assert found.tokens > 0
    assert 0 < found.first_p50 <= found.first_p99
    assert 0 < found.token_p50 <= found.token_p99
    assert 0 <= found.content <= 1


def test_no_prompt_is_asked_twice() -> None:
    workload = Workload([Item(0.0, "m", 30, 1)] * 50, {})
    asked = [tuple(one) for first in (0, 50, 100) for one in prompts(workload, first=first)]
    assert len(set(asked)) == 150
    assert len({one[:4] for one in asked}) == 150, "not even their beginnings"


def test_what_failed_is_told_and_is_no_figure(peers: Any, daemon: LiveDaemon) -> None:
    client = peers.loads.Client({"smol": daemon.url, "gemma": daemon.url})
    found = client.measure(peers.loads.Load(Workload([Item(0.0, "smol", 100_000, 9)], {})))
    assert (found.tokens, found.content, found.failed) == (0.0, 0.0, 1)


def test_many_models_by_a_power_law(peers: Any, daemon: LiveDaemon) -> None:
    urls = {"smol": daemon.url, "gemma": daemon.url}
    served = peers.many.Serving(urls, 0.0, lambda: [daemon.process.pid])
    one = peers.many.crowd(1, peers.many.HOSTED, served, seconds=2.0, rate=5.0)
    assert one.asked == one.served > 5
    assert one.within == (1.0, 1.0, 1.0)
    assert 0 < one.first_p50 <= one.first_p99 < 1
    assert one.memory > 30 << 20
    crowds = peers.many.Crowds({"date": "today"}, 5.0, 2.0, [one])
    shown = peers.page.page(peers.main.Found({}, 20.0, [made(peers, "muxd", 0, 300.0, 80.0)]), crowds)
    row = next(line for line in shown.splitlines() if line.startswith(f"| {peers.many.HOSTED}"))
    assert row.split("|")[2:7] == [f" {one.asked} ", f" {one.asked} ", " 100 ", " 100 ", " 100 "]


def made(peers: Any, server: str, number: int, tokens: float, first: float) -> Any:
    figures = peers.loads.Figures(tokens, first, 2 * first, 10.0, 20.0, 1.0)
    return peers.main.Sitting(number, server, "file", 1.5, (100 << 20, 200 << 20), {"8 streams": figures})


def test_the_page_says_first_where_another_is_better(peers: Any, tmp_path: Path) -> None:
    rounds = [
        [("muxd", 300.0, 80.0), ("x", 100.0, 40.0), ("y", 120.0, 50.0)],
        [("muxd", 340.0, 90.0), ("x", 110.0, 45.0), ("y", 100.0, 60.0)],
    ]
    sittings = [made(peers, *one[:1], number, *one[1:]) for number, row in enumerate(rounds) for one in row]
    found = peers.main.Found({"date": "today", "commit": "abc"}, 20.0, sittings)
    assert peers.page.losses(found) == [
        "* 0.50: 8 streams, first token p50, ms (4 bits, as published)",
        "* 0.50: 8 streams, first token p99, ms (4 bits, as published)",
    ]
    text = peers.page.page(found)
    assert text.index("## Where muxd loses") < text.index("| load |")
    row = next(line for line in text.splitlines() if line.startswith("| 8 streams | muxd |"))
    assert row == "| 8 streams | muxd | 320 (300 to 340) | 85 (80 to 90) | 170 (160 to 180) | 10.0 | 100 |"
    row = next(line for line in text.splitlines() if "muxd / the best other" in line)
    assert row.split("|")[3].strip() == "**2.91**", "medians, beside the best of the others"
    assert "| 4 bits, as published | x | 100 | 200 | 1.5 |" in text, "no one starts faster"
    peers.page.plot(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


REPORT = b"""{"version": "0.4.0", "benchmarks": [{"concurrency": 8, "context_size": 0,
 "pp_throughput": {"mean": 900.0, "std": 1.0, "values": [900.0]},
 "tg_throughput": {"mean": 400.0, "std": 1.0, "values": [400.0]},
 "ttfr": null, "e2e_ttft": {"mean": 250.0, "std": 1.0, "values": [250.0]}}]}"""


def test_what_another_generator_has_written_is_beside_ours(peers: Any) -> None:
    lines = msgspec.json.decode(REPORT, type=peers.benchy._Lines).benchmarks
    found = peers.benchy.sitting(0, "muxd", "file", lines)
    slow = [structs.replace(one, server="x", answer=500.0, first=500.0) for one in found]
    report = peers.benchy.Report({"llama-benchy": "0.4.0"}, 2, [*found, *slow])
    shown = peers.page.page(peers.main.Found({}, 20.0, [made(peers, "muxd", 0, 300.0, 80.0)]), None, report)
    assert "| 8 at once | 4 bits, as published | muxd | 900 | 400 | 250 |" in shown
    assert "| **muxd / the best other** | **1.00** | **0.80** | **2.00** |" in shown
    assert "* 0.80: 8 at once by llama-benchy, answers, tokens/s (4 bits, as published)" in shown


@pytest.mark.parametrize("name", ["peers", "many", "benchy"])
def test_a_folder_with_no_servers_is_a_sentence(name: str, tmp_path: Path) -> None:
    program = str(BENCHMARKS / "peers" / f"{name}.py")
    said = subprocess.run([sys.executable, program, str(tmp_path)], capture_output=True, text=True)
    assert said.returncode == 2
    assert f"{tmp_path} is empty: benchmarks/peers/llama_build.py" in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_generator_is_given_the_documentation(peers: Any) -> None:
    with peers.benchy.text() as address, urllib.request.urlopen(address) as answer:
        assert b"# Design\n" in answer.read()


def test_a_run_that_was_cut_short_has_a_page_too(peers: Any, tmp_path: Path) -> None:
    found = peers.main.Found({}, 20.0, [made(peers, "muxd", 0, 300.0, 80.0)])
    assert peers.page.losses(found) == []
    assert "| **muxd / the best other** | - |" in peers.page.page(found)
    peers.page.plot(found, tmp_path / "plot.png")
