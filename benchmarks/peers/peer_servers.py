"""The servers of the comparison: each serves the same two model files, behind OpenAI's completions."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
def muxd(folder: Path, models: Mapping[str, Path], settings: str = "") -> Iterator[Serving]:
    """As it is, nothing configured but its models and ``settings``. ``models``: folders that `muxctl import`
    made."""
    config = folder / "muxd.toml"
    tables = "".join(f'[[model]]\nname = "{name}"\npath = "{at}"\n' for name, at in models.items())
    config.write_text(settings + tables)
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
def router(server: Path, folder: Path, models: Mapping[str, Path], most: int) -> Iterator[Serving]:
    """llama.cpp's router: it loads who is asked for, and unloads who was asked longest ago beyond ``most``.
    ``folder`` becomes its folder of models."""
    for name, file in models.items():
        (folder / f"{name}.gguf").symlink_to(file)
    began = time.perf_counter()
    cores = sorted(os.sched_getaffinity(0))
    given = ["--models-dir", str(folder), "--models-max", str(most), "-np", "8", "-c", str(CONTEXT // 4)]
    with _process(server, given, cores) as (process, url):
        _wait(url)
        yield Serving(dict.fromkeys(models, url), began, lambda: [process.pid])


def _one(server: Path, name: str, file: Path, cores: list[int]) -> "_Running":
    given = ["-m", str(file), "-a", name, "-np", str(SLOTS), "-c", str(CONTEXT), "--no-kv-unified"]
    return _process(server, given, cores)


_Running = AbstractContextManager[tuple["subprocess.Popen[bytes]", str]]


@contextmanager
def _process(
    server: Path, given: list[str], cores: list[int]
) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "-t", str(len(cores)), "-fa", "off"]
    with subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), str(server), *given, *where],
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
