"""One worker from spawn to exit, as the supervisor sees it: real process, memory, link and model."""

import asyncio
import os
import shutil
import signal
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from support import leaks
from support.direct_runner import DirectRunner
from support.spawned_worker import NAME, Daemon, Forked, Worker
from support.tiny import byte_tokenizer, tiny_llama

from muxd.fleet.zygote import Zygote
from muxd.link.exits import STACKS, Exit
from muxd.messages import (
    NO_TOKEN,
    BatchDone,
    BatchFailed,
    Chunk,
    Constraint,
    Decode,
    NewRows,
    Prefill,
    Ready,
    Refused,
    Sampling,
    Shutdown,
)
from muxd.text.constraint import problem

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")

PROMPT = [5, 17, 99, 3, 64]
Scene = Callable[[Daemon, Worker | Forked], Awaitable[None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def play(folder: Path, scene: Scene, start: Callable[[], Worker | Forked] = Worker) -> None:
    """Run a scene with a daemon end and a fresh worker, and clean up after both."""

    async def run() -> None:
        daemon = Daemon(folder)
        worker = start()
        try:
            await scene(daemon, worker)
        finally:
            worker.close()
            daemon.close()

    asyncio.run(run())


async def ready(daemon: Daemon, worker: Worker | Forked) -> Ready:
    worker.hand_over(daemon)
    message = await daemon.next()
    assert isinstance(message, Ready), message
    return message


def first_prefill(daemon: Daemon) -> Prefill:
    rows = daemon.arena.ledger.take("tiny", 1)
    assert rows is not None
    chunk = Chunk(
        0,
        0,
        np.array(PROMPT, "<i4").tobytes(),
        rows.ids.tobytes(),
        True,
        Sampling(temperature=0.0),
        len(PROMPT),
    )
    return Prefill(1, 100, NewRows(rows.ids.tobytes(), rows.blocks.tobytes()), [chunk], [])


def step(batch: int, seq: int = 0) -> Decode:
    return Decode(batch, 100, NewRows(), [seq], [], [])


@pytest.mark.parametrize("way", ["by hand", "forked"])
def test_a_worker_serves_from_shared_memory_until_it_is_told_to_stop(
    folder: Path, way: str, zygote: Zygote
) -> None:
    expected = DirectRunner(folder, cores=1).generate([PROMPT], 6)[0]

    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        pool = daemon.arena._region.array()  # type: ignore[attr-defined]
        message = await ready(daemon, worker)
        assert (message.worker, message.pid) == (NAME, worker.pid)
        assert not pool.any()  # warming up touches no shared block
        tokens = []
        commands: list[Prefill | Decode] = [first_prefill(daemon), *(step(n) for n in range(2, 7))]
        for batch, command in enumerate(commands, start=1):
            done = await daemon.call(command)
            assert isinstance(done, BatchDone)
            assert done.batch == batch
            tokens += done.tokens
        assert tokens == expected
        assert pool.any()  # K and V, written by the worker, seen here
        shows_its_memory_and_name(worker.pid)
        daemon.link.send(NAME, Shutdown())
        assert worker.ended() == (Exit.OK, "")

    play(folder, scene, Worker if way == "by hand" else lambda: Forked(zygote))


def test_a_worker_that_is_asked_where_it_stands_says_so_and_serves_on(folder: Path) -> None:
    async def asked(daemon: Daemon, worker: Worker | Forked) -> None:
        await ready(daemon, worker)
        os.kill(worker.pid, STACKS)
        done = await daemon.call(first_prefill(daemon))
        assert isinstance(done, BatchDone)
        daemon.link.send(NAME, Shutdown())
        code, said = worker.ended()
        assert code == Exit.OK
        assert "most recent call first" in said
        assert "muxd/worker/__main__.py" in said

    play(folder, asked)


def shows_its_memory_and_name(pid: int) -> None:
    """The pool writable, weights read-only; of the received descriptors only mmap's own copies are left."""
    maps = [
        line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:muxd" in line
    ]
    assert {(line[5], line[1]) for line in maps} == {
        ("/memfd:muxd-pool", "rw-s"),
        ("/memfd:muxd-weights", "r--s"),
    }
    assert leaks.memfds(pid) == ["/memfd:muxd-weights (deleted)"], "what is unmapped must be free"
    assert Path(f"/proc/{pid}/comm").read_text() == "muxd:tiny\n"


def test_what_the_daemon_writes_is_what_the_worker_reads(
    folder: Path, tmp_path: Path, zygote: Zygote
) -> None:
    """Other weights in the same region give the tokens of the other model: nothing was copied before."""
    other = tiny_llama(tmp_path / "other", seed=1)
    expected = DirectRunner(other, cores=1).generate([PROMPT], 1)[0]
    assert expected != DirectRunner(folder, cores=1).generate([PROMPT], 1)[0]

    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        donor = Daemon(other)
        daemon.weights.array()[:] = donor.weights.array()
        donor.close()
        await ready(daemon, worker)
        done = await daemon.call(first_prefill(daemon))
        assert isinstance(done, BatchDone)
        assert done.tokens == expected

    play(folder, scene, lambda: Forked(zygote))


def test_a_batch_that_raises_is_reported_and_ends_the_worker(folder: Path) -> None:
    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        await ready(daemon, worker)
        failed = await daemon.call(step(9, seq=77))
        assert isinstance(failed, BatchFailed)
        assert failed.batch == 9
        assert "77" in failed.error
        assert "\n" not in failed.error
        code, errors = worker.ended()
        assert code == Exit.FAILED
        assert "batch 9 failed" in errors

    play(folder, scene)


def deepest() -> Constraint:
    """A grammar with as many brackets as the door can read, by the parser's recursion, on a thread's empty
    stack."""

    def nested(levels: int) -> Constraint:
        return Constraint("grammar", f'root ::= {"(" * levels}"a"{")" * levels}', (2,))

    with ThreadPoolExecutor(1) as door:
        levels = bisect_left(range(1000), True, key=lambda n: bool(door.submit(problem, nested(n)).result()))
        assert door.submit(problem, nested(levels - 1)).result() == ""
    return nested(levels - 1)


def test_a_grammar_that_only_the_door_could_read_ends_its_own_answer(
    folder: Path, tmp_path: Path, zygote: Zygote
) -> None:
    worded = byte_tokenizer(Path(shutil.copytree(folder, tmp_path / "worded")))
    expected = DirectRunner(folder, cores=1).generate([PROMPT], 2)[0]

    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        worker.hand_over(daemon, folder=str(worded))
        assert isinstance(await daemon.next(), Ready)
        plain, other = first_prefill(daemon), first_prefill(daemon)
        (chunk,) = other.chunks
        held = structs.replace(chunk, seq=1, sampling=Sampling(temperature=0.0, constraint=deepest()))
        rows = NewRows(plain.rows.ids + other.rows.ids, plain.rows.blocks + other.rows.blocks)
        done = await daemon.call(structs.replace(plain, rows=rows, chunks=[*plain.chunks, held]))
        assert isinstance(done, BatchDone), done
        assert done.tokens == [expected[0], NO_TOKEN]
        done = await daemon.call(step(2))
        assert isinstance(done, BatchDone)
        assert done.tokens == expected[1:]

    play(folder, scene, lambda: Forked(zygote))


def test_a_command_that_cannot_be_read_ends_the_worker(folder: Path) -> None:
    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        await ready(daemon, worker)
        daemon.link._socket.send_multipart([NAME.encode(), b"\xc1"])
        code, errors = worker.ended()
        assert code == Exit.BAD_MESSAGE
        assert "malformed command" in errors

    play(folder, scene)


def test_a_model_it_cannot_serve_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, zygote: Zygote
) -> None:
    bad = tiny_llama(tmp_path / "bad")
    config = (bad / "config.json").read_text()
    (bad / "config.json").write_text(config.replace("LlamaForCausalLM", "SomethingElse"))

    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        worker.hand_over(daemon, folder=str(bad))
        refused = await daemon.next()
        assert isinstance(refused, Refused)
        assert refused.worker == NAME
        assert "SomethingElse" in refused.reason
        assert worker.ended()[0] == Exit.REFUSED

    play(folder, scene, lambda: Forked(zygote))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pool_bytes": 1 << 40}, "pool: the set-up says 1099511627776 bytes, its descriptor has"),
        ({"weights_bytes": 0}, "weights: the set-up says 0 bytes"),
    ],
)
def test_memory_that_does_not_fit_the_setup_is_refused(
    folder: Path, changes: dict[str, int], told: str
) -> None:
    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        worker.hand_over(daemon, **changes)
        code, errors = worker.ended()
        assert code == Exit.BAD_SETUP
        assert told in errors

    play(folder, scene)


def test_ctrl_c_is_the_daemons_and_sigterm_ends_at_once(folder: Path, zygote: Zygote) -> None:
    async def scene(daemon: Daemon, worker: Worker | Forked) -> None:
        await ready(daemon, worker)
        worker.send_signal(signal.SIGINT)
        assert isinstance(await daemon.call(first_prefill(daemon)), BatchDone)
        worker.send_signal(signal.SIGTERM)
        assert worker.ended() == (-signal.SIGTERM, "")

    play(folder, scene, lambda: Forked(zygote))
