"""The servers of the comparison: each serves the same two model files, behind OpenAI's completions."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker_start import pss, tree_of

from muxd.cli.local_daemon import local_daemon

SLOTS, CONTEXT = 32, 65536  # of a llama-server: sequences at once, and tokens of all of them
START, STOP = 120.0, 20.0  # seconds


@dataclass(frozen=True)
class Serving:
    """``urls``: where each model is served; ``began``: when the first process was started."""

    urls: Mapping[str, str]
    began: float
    pids: Callable[[], list[int]]

    def memory(self) -> int:
        """Bytes of all processes, what they share counted once (PSS)."""
        return sum(pss(one) for pid in self.pids() for one in tree_of(pid))


@contextmanager
def muxd(folder: Path, models: Mapping[str, Path]) -> Iterator[Serving]:
    """As it is, nothing configured but its models. ``models``: folders that `muxctl import` made."""
    config = folder / "muxd.toml"
    config.write_text("".join(f'[[model]]\nname = "{name}"\npath = "{at}"\n' for name, at in models.items()))
    began = time.perf_counter()
    with local_daemon(config) as admin:
        daemon = next(row.pid for row in admin.ps() if row.role == "daemon")
        yield Serving(dict.fromkeys(models, admin.status().address), began, lambda: [daemon])


@contextmanager
def llama(server: Path, models: Mapping[str, Path], *, apart: bool) -> Iterator[Serving]:
    """One llama-server a model. ``apart``: each has cores, and as many threads, of its own: the way to run
    several beside each other; else all threads each. ``models``: GGUF files."""
    cores = sorted(os.sched_getaffinity(0))
    began = time.perf_counter()
    with ExitStack() as stack:
        urls, pids = {}, []
        for number, (name, file) in enumerate(models.items()):
            own = cores[number :: len(models)] if apart else cores
            process, urls[name] = stack.enter_context(_one(server, name, file, own or cores))
            pids.append(process.pid)
        for url in urls.values():
            _wait(url)
        yield Serving(urls, began, lambda: pids)


@contextmanager
def _one(
    server: Path, name: str, file: Path, cores: list[int]
) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [
            *("taskset", "-c", ",".join(map(str, cores)), server, "-m", file, "-a", name),
            *("--host", "127.0.0.1", "--port", str(port), "-t", str(len(cores)), "-np", str(SLOTS)),
            *("-c", str(CONTEXT), "-fa", "off", "--no-kv-unified"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(url: str) -> None:
    """Until it answers. Raises TimeoutError."""
    end = time.perf_counter() + START
    while time.perf_counter() < end:
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
    raise TimeoutError(f"{url} does not answer")
