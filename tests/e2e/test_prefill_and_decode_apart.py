"""A model whose prompts and answers are computed at once, by two processes or, where a GPU can be divided, by
one: the same tokens, one copy of everything."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from openai import OpenAI, Stream
from openai.types import Completion
from support.live import LiveDaemon
from support.shared import Shared
from support.tiny import tiny_served
from support.where import EVERYWHERE, Where, on

pytestmark = [on(*EVERYWHERE), pytest.mark.xdist_group("cores")]  # each process needs one

LONG = 400  # tokens of an answer that must still run while something else happens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("models") / "a", 3)


def config(folder: Path, split: str) -> str:
    scheduler = f'[scheduler]\nsplit_phases = "{split}"\nprefill_tokens = 32\n'
    model = f'[[model]]\nname = "a"\npath = "{folder}"\ndtype = "float32"\nshare = 50\n'
    return f'[pool]\nbytes = "8M"\n{scheduler}{model}'


@pytest.fixture(scope="module")
def shared(where: Where, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with Shared(where, config(folder, "yes"), tmp_path_factory.mktemp("apart")) as shared:
        yield shared


@pytest.fixture
def daemon(shared: Shared) -> Iterator[LiveDaemon]:
    with shared.lent() as daemon:
        yield daemon


def pair(daemon: LiveDaemon) -> dict[str, int]:
    """Phases -> process id of model a's workers."""
    return {row.phases: row.pid for row in daemon.admin.ps() if row.role == "worker"}


def ask(daemon: LiveDaemon, prompt: str, **options: Any) -> list[int]:
    body = {"model": "a", "prompt": prompt, "max_tokens": 24, "ignore_eos": True, "return_token_ids": True}
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body | options, timeout=60)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def once(client: OpenAI) -> Stream[Completion]:
    """A long answer as it comes."""
    return client.completions.create(
        model="a", prompt="Once", stream=True, max_tokens=LONG, temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )  # fmt: skip


def check_whole(daemon: LiveDaemon, chunks: list[Completion]) -> None:
    """Of ``once``: it came to its end, with the tokens that it has when nothing happens."""
    tokens = [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", [])]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert tokens == ask(daemon, "Once", temperature=0, max_tokens=LONG)


def questions() -> list[tuple[str, dict[str, Any]]]:
    """Greedy and not, with what depends on all earlier tokens; some begin alike, some need several chunks."""
    same = "The quick brown fox jumps over the lazy dog. " * 3
    greedy = [(same * (1 + i % 2) + f"Once {i}", {"temperature": 0}) for i in range(6)]
    drawn = {
        "temperature": 0.9,
        "seed": 11,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.4,
        "top_p": 0.9,
    }
    return greedy + [(same + f"Say {i}", drawn) for i in range(6)]


def test_two_processes_say_what_one_says_of_both_phases_and_of_one(
    where: Where, folder: Path, tmp_path: Path
) -> None:
    said, processes = {}, {"no": ["prefill+decode"], "yes": ["decode", "prefill"]}
    if where.gpu:
        processes["auto"] = ["prefill+decode"]
    for split, expected in processes.items():
        (tmp_path / split).mkdir()
        with where.live(config(folder, split), tmp_path / split) as daemon, ThreadPoolExecutor(12) as pool:
            assert sorted(pair(daemon)) == expected
            asked = [pool.submit(ask, daemon, prompt, **options) for prompt, options in questions()]
            said[split] = [future.result() for future in asked]
            assert daemon.admin.audit().fault == ""
            if split != "no":
                together = [
                    (one, other) for one in spans(daemon) for other in spans(daemon) if beside(one, other)
                ]
                assert together, "no prompt was ever computed beside an answer of the same model"
    assert all(tokens == said["no"] for tokens in said.values())
    assert len({tuple(tokens) for tokens in said["no"]}) > 6


def spans(daemon: LiveDaemon) -> list[Any]:
    return [span for part in daemon.admin.trace() for span in part.spans]


def beside(one: Any, other: Any) -> bool:
    apart = (one.phase, other.phase) == ("prefill", "decode")
    return apart and one.start < (other.end or 1e30) and other.start < (one.end or 1e30)


def test_both_map_the_same_weights_and_the_same_pool(where: Where, daemon: LiveDaemon) -> None:
    mapped = {phases: memfds(pid) for phases, pid in pair(daemon).items()}
    assert mapped["prefill"] == mapped["decode"]
    if not where.gpu:
        assert {name for name, _ in mapped["decode"]} == {"muxd-pool", "muxd-weights"}
    if not where.gpu or where.stand_in:
        assert len(mapped["decode"]) == 2


def memfds(pid: int) -> set[tuple[str, str]]:
    """(name, inode) of what the process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    found = (re.search(r" (\d+) +/memfd:(muxd-\w+|stand-in-gpu)", line) for line in lines)
    return {(match[2], match[1]) for match in found if match}


@pytest.mark.parametrize("victim", ["prefill", "decode"])
def test_one_that_is_killed_takes_the_other_along(daemon: LiveDaemon, victim: str) -> None:
    """Both are replaced, and a stream goes on where it was."""
    before, restarted = pair(daemon), restarts(daemon)
    with daemon.client() as client:
        stream = once(client)
        chunks = [next(stream)]
        os.kill(before[victim], signal.SIGKILL)
        chunks += stream
    check_whole(daemon, chunks)
    after = pair(daemon)
    assert set(after) == {"prefill", "decode"}
    assert not set(after.values()) & set(before.values())
    assert restarts(daemon) == restarted + 1
    books = daemon.admin.audit()
    assert not books.fault
    assert not books.held_blocks


def test_one_that_computes_both_phases_is_killed_and_everybody_goes_on(
    where: Where, folder: Path, tmp_path: Path
) -> None:
    """While prompts and answers are under way; nobody is told, and no token is another one."""
    asked = [(f"{prompt} again", {**options, "max_tokens": 120}) for prompt, options in questions()]
    with where.live(config(folder, "auto"), tmp_path) as daemon, ThreadPoolExecutor(12) as pool:
        alone = [ask(daemon, prompt, **options) for prompt, options in asked]
        before, restarted = pair(daemon), restarts(daemon)
        with daemon.client() as client:
            stream = once(client)
            chunks = [next(stream)]
            answers = [pool.submit(ask, daemon, prompt, **options) for prompt, options in asked]
            for _ in range(20):
                chunks.append(next(stream))
            os.kill(before["prefill+decode"], signal.SIGKILL)
            chunks += stream
        check_whole(daemon, chunks)
        assert [answer.result() for answer in answers] == alone
        after = pair(daemon)
        assert set(after) == {"prefill+decode"}
        assert after != before
        assert restarts(daemon) == restarted + 1
        books = daemon.admin.audit()
        assert not books.fault
        assert not books.held_blocks


def restarts(daemon: LiveDaemon) -> float:
    text = httpx.get(f"{daemon.url}/metrics", timeout=60).text
    found = re.search(r'^muxd_worker_restarts_total{model="a"} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0
