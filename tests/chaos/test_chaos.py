"""Faults one after another against a daemon that serves; at the end nothing is lost, doubled or left.

Workers are killed, stopped and hang; text processes and the process that forks workers are killed; the daemon
itself stands still; a model's files are gone while it is loaded; the disk is full and the wall clock jumps;
strangers send garbage to every socket that there is, and operators nonsense. Whatever is asked meanwhile ends
in exactly one way, and what is answered is what the model answers alone. ``MUXD_CHAOS`` says how many faults
(42 unless told, 1,000 for ``make chaos``), ``MUXD_CHAOS_SEED`` draws another course. How long models were
away is printed.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import jumping_clock, leaks
from support.churn import ask
from support.churn_books import check_answers, check_both_sides
from support.churned import Churn, config, every_step, folders, played
from support.live import live
from support.shared import until

from muxd.admin.schemas import LoadModel, PinModel, QuotaChange, UnloadModel
from muxd.fleet.state import Limits

FAULTS = int(os.environ.get("MUXD_CHAOS", "42"))
SEED = int(os.environ.get("MUXD_CHAOS_SEED", "1"))
SECONDS = 3.0  # for each fault at most, on a machine that does nothing else
HANG = 3.0  # seconds after which a batch is overdue: its worker hangs
# Seconds for each model: with more deaths than that it would rest. One that hung is dead some seconds later.
KILL_EVERY = (Limits().window + 4 * HANG) / (Limits().max_failures - 1)


class Chaos(Churn):
    """``away``: seconds from a worker's end until its model had another one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.away: list[float] = []
        self._killed = dict.fromkeys(self.models, -KILL_EVERY)  # when, by the clock of the loop

    def troubles(self) -> Iterable[Coroutine[Any, Any, None]]:
        return (self._faults(),)

    async def _faults(self) -> None:
        faults = [
            self._kill, self._kill, self._hang, self._stand_still, self._daemon_stands_still,
            self._kill_text, self._kill_zygote, self._files_gone, self._garbage_http, self._half_a_request,
            self._garbage_admin, self._garbage_link, self._nonsense, self._move_quotas, self._disk_full,
            self._clock_jumps,
        ]  # fmt: skip
        rounds = [
            fault for _ in range(FAULTS // len(faults) + 1) for fault in self.draw.sample(faults, len(faults))
        ]
        for number, fault in enumerate(rounds[:FAULTS], 1):
            if fault in (self._kill, self._hang) and self._victim() is None:
                fault = self.draw.choice(faults[3:])
            await fault()
            await self._pause(self.draw.expovariate(4.0))
            if number % (10 * len(faults)) == 0:
                async with self._idle():  # before the journal forgets how those ended who came first
                    pass
        self._over.set()

    # ---- workers ----------------------------------------------------------------------------------

    async def _kill(self) -> None:
        await self._end(self.draw.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM]))

    async def _hang(self) -> None:
        """For ever: only the daemon's own patience ends it."""
        await self._end(signal.SIGSTOP)

    async def _end(self, number: signal.Signals) -> None:
        if (found := self._victim()) is None:
            self.done["nobody to kill"] += 1
            return
        model, pid = found
        began = time.monotonic()
        self._killed[model] = asyncio.get_running_loop().time()
        os.kill(pid, number)
        self.done[f"{number.name} of a worker"] += 1
        if number is signal.SIGSTOP:
            # It is found out by a batch that it does not compute.
            self._ask_now(model)
        await asyncio.to_thread(until, lambda: self.daemon.workers().get(model) not in (None, pid))
        self.away.append(time.monotonic() - began)

    def _ask_now(self, model: str) -> None:
        task = asyncio.ensure_future(ask(self.session, self.request(model, 0, 4)))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    def _victim(self) -> tuple[str, int] | None:
        now, there = asyncio.get_running_loop().time(), self.daemon.workers()
        may = [(model, pid) for model, pid in there.items() if now - self._killed[model] >= KILL_EVERY]
        return self.draw.choice(may) if may else None

    async def _stand_still(self) -> None:
        """For less than anybody's patience."""
        pid = self.draw.choice(list(self.daemon.workers().values()))
        await self._stop_and_go(pid, 0.5)
        self.done["a worker stood still"] += 1

    # ---- the others -------------------------------------------------------------------------------

    async def _daemon_stands_still(self) -> None:
        await self._stop_and_go(self.daemon.process.pid, 0.5)
        self.done["the daemon stood still"] += 1

    async def _stop_and_go(self, pid: int, seconds: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    async def _kill_text(self) -> None:
        texts = [row.pid for row in self.daemon.admin.ps() if row.role == "text"]
        if texts:
            os.kill(self.draw.choice(texts), signal.SIGKILL)
            self.done["SIGKILL of a text process"] += 1

    async def _kill_zygote(self) -> None:
        for pid in self.daemon.workers().values():
            zygote = leaks.parent(pid)
            if zygote != self.daemon.process.pid:
                os.kill(zygote, signal.SIGKILL)
                self.done["SIGKILL of the zygote"] += 1
                return

    async def _files_gone(self) -> None:
        """``c`` is loaded without its weights, which fails in words, and then with them."""
        file = self.models["c"] / "model.safetensors"
        await self._try("unloads", every_step(self.daemon.admin.unload), UnloadModel("c", now=True))
        away = file.rename(file.with_suffix(".away"))
        await self._try("loads without files", every_step(self.daemon.admin.load), LoadModel("c"))
        away.rename(file)
        await self._try("loads", every_step(self.daemon.admin.load), LoadModel("c"))

    # ---- the host ---------------------------------------------------------------------------------

    async def _disk_full(self) -> None:
        """What an operator sets is not kept over a restart, as the log says; it holds all the same."""
        await asyncio.to_thread(self._set_a_quota)
        folder = self.daemon.folder
        await asyncio.to_thread(until, lambda: any(folder.glob("*.set.json")))
        (kept,) = folder.glob("*.set.json")
        draft = kept.with_name(f".{kept.name}.new")
        await asyncio.to_thread(until, lambda: _leads_to(draft, "/dev/full"))
        before = self._unkept()
        await asyncio.to_thread(self._set_a_quota)
        await asyncio.to_thread(until, lambda: self._unkept() > before)
        draft.unlink()
        self.done["a full disk"] += 1

    def _unkept(self) -> int:
        return self.daemon.log.count("what was set cannot be kept: No space left on device")

    async def _clock_jumps(self) -> None:
        """By a year at most, either way."""
        ahead = self.draw.randrange(-365 * 86400, 365 * 86400)
        clock_of(self.daemon.folder).write_text(str(ahead))
        await asyncio.to_thread(self._set_a_quota)
        seen = [one.time for one in self.daemon.admin.events() if one.kind == "quota"][-1]
        assert abs(seen - time.time() - ahead) < 30, "the daemon's clock has not jumped"
        self.done["the clock jumped"] += 1

    def _set_a_quota(self) -> None:
        """One that was not set before."""
        change = QuotaChange(self.draw.choice("ab"), f"{next(self._ids) % 9973 / 1000:.3f}%", "100%")
        self.daemon.admin.set_quota(change)

    # ---- strangers --------------------------------------------------------------------------------

    async def _garbage_http(self) -> None:
        host, _, port = self.daemon.url.removeprefix("http://").partition(":")
        sent = self.draw.choice([
            self.draw.randbytes(400),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS begins
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/embeddings HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"\r\n" * 3000,
        ])  # fmt: skip
        await asyncio.to_thread(_send, (host, int(port)), sent)
        self.done["garbage for HTTP"] += 1

    async def _half_a_request(self) -> None:
        host, _, port = self.daemon.url.removeprefix("http://").partition(":")
        head = b"POST /v1/embeddings HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n{"
        await asyncio.to_thread(_send, (host, int(port)), head)
        self.done["half a request"] += 1

    async def _garbage_admin(self) -> None:
        await asyncio.to_thread(_send, str(self.daemon.socket), self.draw.randbytes(400))
        self.done["garbage for the admin socket"] += 1

    async def _garbage_link(self) -> None:
        """To the sockets that workers speak over."""
        for path in _link_sockets(self.daemon.process.pid):
            await asyncio.to_thread(_send, path, self.draw.randbytes(400))
            self.done["garbage for the link"] += 1

    async def _nonsense(self) -> None:
        admin = self.daemon.admin
        await self._try("unloads", every_step(admin.unload), UnloadModel("nobody"))
        await self._try("policies", admin.set_policy, "lifo")
        await self._try("pins", admin.pin, PinModel("nobody", True))
        await self._try("quotas", admin.set_quota, QuotaChange("a", "90%", "10%"))

    async def _move_quotas(self) -> None:
        change = QuotaChange(self.draw.choice("ab"), f"{self.draw.randrange(10)}%", "100%")
        await self._try("quotas", self.daemon.admin.set_quota, change)


def clock_of(folder: Path) -> Path:
    """The file by which ``support.jumping_clock`` is told."""
    return folder / "clock"


def _leads_to(draft: Path, there: str) -> bool:
    """False where the daemon is just writing it."""
    with suppress(FileExistsError):
        draft.symlink_to(there)
        return True
    return False


def _send(where: tuple[str, int] | str, data: bytes) -> None:
    """And hang up."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one, suppress(OSError):
        one.settimeout(5)
        one.connect(where)
        one.sendall(data)


def _link_sockets(pid: int) -> list[str]:
    """Paths in the private folder of the daemon, which its workers are told of."""
    own = {
        link.removeprefix("socket:[").removesuffix("]")
        for fd in Path(f"/proc/{pid}/fd").iterdir()
        if (link := _target(fd)).startswith("socket:[")
    }
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    paths = [row[7] for row in rows if len(row) > 7 and row[6] in own]
    return [path for path in paths if "/muxd-" in path and "admin" not in path]


def _target(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except FileNotFoundError:
        return ""


@pytest.mark.slow
@pytest.mark.timeout(FAULTS * SECONDS * 4 + 300)
def test_whatever_is_done_to_it_the_daemon_serves_on(tmp_path: Path) -> None:
    models = folders(tmp_path)
    patience = f"[scheduler]\nbatch_timeout = {HANG}\nbatch_timeout_factor = 5.0\n"
    text = config(models).replace("[scheduler]\n", patience)
    clock_of(tmp_path).write_text("0")
    paths = [*jumping_clock.__path__, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {"MUXD_TEST_CLOCK": str(clock_of(tmp_path)), "PYTHONPATH": os.pathsep.join(paths)}
    with live(text, tmp_path, env) as daemon:
        chaos, text, before, after = asyncio.run(
            played(daemon, lambda session: Chaos(daemon, models, session, FAULTS * SECONDS * 4, SEED))
        )
        outcomes = Counter(one.outcome for one in chaos.asked)
        away = sorted(chaos.away)
        report = {
            "outcomes": dict(outcomes),
            "done": dict(chaos.done),
            "seconds without a worker, median": statistics.median(away),
            "seconds without a worker, p99": away[int(0.99 * len(away))],
        }
        print(json.dumps(report, indent=1))
        check_answers(chaos)
        check_both_sides(chaos, text)
        books = daemon.admin.audit()
        assert (books.fault, books.held_blocks) == ("", 0)
        assert outcomes["served"]
        assert len(daemon.workers()) == len(models)
        assert len(after) <= len(before) + 2, sorted(after.values())
        assert "CRITICAL" not in daemon.log
