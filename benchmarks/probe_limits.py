"""How many processes one MPS server takes, green contexts in them, and what each costs in device memory.

    python benchmarks/probe_limits.py --out F.jsonl [--most 64] [--memory BYTES]

Through the driver alone, as the daemon and its workers use it. Clients are started one after another and
kept, until one is refused or there are ``--most``; then some of them make green contexts, and one more
process asks to be let in. Has not run on a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from muxd.device.driver import OFF_MPS, Driver
from muxd.device.green import PARTS, GreenContexts
from muxd.device.mps import Mps, MpsUnavailable
from muxd.errors import MuxdError

_MASKS = range(1, 1 << PARTS)
_TOLD = frozenset((1, 2, 4, 8, 16, 24, 32, 48, 60))
_GREEN = 8  # clients that make green contexts
_END = 20.0
_GIB = 1 << 30


class Answers:
    def __init__(self, out: Path):
        self._out = out

    def say(self, question: str, **answer: Any) -> None:
        line = json.dumps({"question": question, **answer})
        print(line, flush=True)
        with self._out.open("a") as file:
            file.write(f"{line}\n")


class Client:
    """A process with a context, which makes green contexts when it is told to."""

    def __init__(self, env: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--client"], env={**os.environ, **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def heard(self) -> str:
        """Its next line, "" when it has ended."""
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def asked(self) -> str:
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        return self.heard()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def client() -> None:
    """ "context", then after a line "greens"; what failed where it did, in one line."""
    step = "cuInit"
    try:
        driver = Driver()
        step = "context"
        driver.retain()
        driver.synchronize()
        print("context", flush=True)
        if not sys.stdin.readline():
            return
        step = "split"
        contexts = GreenContexts(driver)
        for mask in _MASKS:
            step = f"green context {mask}"
            contexts.green(mask)
        print("greens", flush=True)
        sys.stdin.readline()
    except MuxdError as error:
        print(f"{step}: {' '.join(error.message.split())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="F.jsonl")
    parser.add_argument("--most", type=int, default=64)
    parser.add_argument("--memory", type=int, default=_GIB, help="bytes that are made without a context")
    args = parser.parse_args()
    answers = Answers(args.out)
    try:
        without_context(answers, args.memory)
    except MuxdError as error:
        answers.say("without a context", error=error.message)
    with tempfile.TemporaryDirectory(prefix="muxd-", dir="/tmp") as home, ExitStack() as held:
        env, most = dict(OFF_MPS), min(args.most, 4)
        mps = Mps(Path(home))
        held.callback(mps.stop)
        try:
            mps.start()
            env, most = mps.client_env(), args.most
            answers.say("mps", started=True)
        except MpsUnavailable as error:
            answers.say("mps", started=False, error=error.message)
        crowd(answers, env, most, held)
        answers.say("mps, its log", words=mps.last_words(3))


def without_context(answers: Answers, nbytes: int) -> None:
    """The daemon's way: what cuInit and memory cost, and when memory goes back."""
    os.environ.update(OFF_MPS)
    seen = [used()]
    driver = Driver()
    seen.append(used())
    begun = time.perf_counter()
    handle = driver.create(nbytes)
    made = time.perf_counter() - begun
    seen.append(used())
    descriptor = driver.export(handle)
    driver.release(handle)
    seen.append(used())
    os.close(descriptor)
    seen.append(used())
    names = ("after_cuinit", "after_create", "held_by_descriptor", "after_close")
    mib = {f"{name}_mib": (one - seen[0]) >> 20 for name, one in zip(names, seen[1:], strict=True)}
    answers.say("without a context", bytes=nbytes, create_s=round(made, 4), **mib)


def crowd(answers: Answers, env: dict[str, str], most: int, held: ExitStack) -> None:
    clients: list[Client] = []
    base = used()
    for number in range(1, most + 1):
        one = Client(env)
        held.callback(one.close)
        if (word := one.heard()) != "context":
            answers.say("client", number=number, refused=word or "it ended", mib=(used() - base) >> 20)
            break
        clients.append(one)
        if number in _TOLD or number == most:
            answers.say("client", number=number, mib=(used() - base) >> 20)
    before = used()
    for number, one in enumerate(clients[:_GREEN], 1):
        word = one.asked()
        more = (used() - before) >> 20
        answers.say(
            "green contexts", process=number, of_each=len(_MASKS), answer=word or "it ended", mib=more
        )
        if word != "greens":
            break
    late = Client(env)
    held.callback(late.close)
    answers.say("one more", answer=late.heard() or "it ended", clients=len(clients))


def used() -> int:
    """Bytes in use on the first device, as NVML counts them; 0 where it cannot be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    except Exception:
        return 0


if __name__ == "__main__":
    client() if sys.argv[1:] == ["--client"] else main()
