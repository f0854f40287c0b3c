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

from vllm_build import ENVIRONMENT
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
        urls, processes = {}, {}
        for number, (name, file) in enumerate(models.items()):
            own = cores[number :: len(models)] if apart else cores
            processes[name], urls[name] = stack.enter_context(_one(server, name, file, own or cores))
        for name, process in processes.items():
            _wait(urls[name], process)
        yield Serving(urls, began, lambda: [process.pid for process in processes.values()])


@contextmanager
def router(server: Path, folder: Path, models: Mapping[str, Path], most: int) -> Iterator[Serving]:
    """llama.cpp's router: it loads who is asked for, and unloads who was asked longest ago beyond ``most``.
    ``folder`` becomes its folder of models."""
    for name, file in models.items():
        (folder / f"{name}.gguf").symlink_to(file)
    began = time.perf_counter()
    cores = sorted(os.sched_getaffinity(0))
    given = ["--models-dir", str(folder), "--models-max", str(most), "-np", "8", "-c", str(CONTEXT // 4)]
    with _process(server, [*given, *_threads(cores)], cores) as (process, url):
        _wait(url, process)
        yield Serving(dict.fromkeys(models, url), began, lambda: [process.pid])


@contextmanager
def vllm(program: Path, models: Mapping[str, Path]) -> Iterator[Serving]:
    """One `vllm serve` a model, each with all cores, eager, for sequences as long as the loads have.
    ``models``: folders in bfloat16."""
    cores = sorted(os.sched_getaffinity(0))
    environment = os.environ | ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    began = time.perf_counter()
    with ExitStack() as stack:
        urls, pids = {}, []
        for name, folder in models.items():
            given = ["serve", str(folder), "--served-model-name", name, "--dtype", "bfloat16"]
            given += [
                "--enforce-eager",
                "--max-num-seqs",
                str(SLOTS),
                "--max-model-len",
                str(CONTEXT // SLOTS),
            ]
            process, urls[name] = stack.enter_context(_process(program, given, cores, environment))
            pids.append(process.pid)
            _wait(urls[name], process)  # one after the other: each measures the memory that is free
        yield Serving(urls, began, lambda: pids)


def _one(server: Path, name: str, file: Path, cores: list[int]) -> "_Running":
    given = ["-m", str(file), "-a", name, "-np", str(SLOTS), "-c", str(CONTEXT), "--no-kv-unified"]
    return _process(server, [*given, *_threads(cores)], cores)


def _threads(cores: list[int]) -> list[str]:
    return ["-t", str(len(cores)), "-fa", "off"]


_Running = AbstractContextManager[tuple["subprocess.Popen[bytes]", str]]


@contextmanager
def _process(
    server: Path, given: list[str], cores: list[int], environment: Mapping[str, str] | None = None
) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), str(server), *given, *where],
        env=environment,
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


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Until it answers. Raises TimeoutError, and ChildProcessError where it has ended."""
    end = time.perf_counter() + START
    while time.perf_counter() < end:
        if (code := process.poll()) is not None:
            raise ChildProcessError(f"the server of {url} has ended with {code}")
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.02)
    raise TimeoutError(f"{url} does not answer")
