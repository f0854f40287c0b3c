"""Probes of sharing a GPU: MPS with a real cap, green contexts that are really apart."""

import os
from contextlib import suppress
from pathlib import Path

from muxd.device.cuda import Cuda
from muxd.device.driver import OFF_MPS, CudaError, Driver
from muxd.device.green import Unsplittable, disjoint, quarters
from muxd.device.mps import ClientView, Mps, MpsUnavailable, default_home
from muxd.doctor.checks import SCRATCH
from muxd.doctor.finding import Finding
from muxd.doctor.peer import Ask, Peer, PeerFailed
from muxd.errors import MuxdError

_CAP = 50
_SIZE = 4 << 20
_TURNS = "models take turns on the whole GPU: correct, but a prefill holds up every stream"
_FIXED = "workers keep the share they were started with (MPS percentages); it cannot follow the load"


def mps() -> list[Finding]:
    """A daemon of the doctor's own, with a capped and a free client; then the one muxd uses, if it runs."""
    return [*_own_mps(), *_running_mps()]


def _own_mps() -> list[Finding]:
    mps = _scratch_mps()
    try:
        mps.start()
    except MpsUnavailable as error:
        todo = {
            "missing": "install the driver's nvidia-cuda-mps-control and nvidia-cuda-mps-server",
            "refused": "in a container, let the host run the daemon and share its pipe directory",
            "timeout": f"see {mps.logs}/control.log, and whether a server hangs (ps, nvidia-smi)",
        }[error.why]
        return [Finding("mps", "missing", error.message, _TURNS, todo)]
    try:
        cuda = Cuda()
        return [_capped(mps, cuda.cores), _mapped(mps, cuda)]
    except (MpsUnavailable, PeerFailed, CudaError) as error:
        log = "; ".join(mps.last_words(2))
        return [Finding("mps", "missing", error.message + (f" (server log: {log})" if log else ""), _TURNS)]
    finally:
        mps.stop()


def _capped(mps: Mps, whole: int) -> Finding:
    """Attach two clients, compare what they see with what they were given."""
    with Peer("client", mps.client_env(_CAP)) as capped, Peer("client", mps.client_env()) as free:
        half, all_of_it = _view(capped), _view(free)
        problems = [mps.confirm(free.pid, all_of_it, 0, whole), mps.confirm(capped.pid, half, _CAP, whole)]
    problems = [problem for problem in problems if problem]
    numbers = {"cap_percent": float(_CAP), "sms": float(half.sms), "whole_sms": float(whole)}
    if problems:
        meaning = "caps cannot be trusted; " + _TURNS
        return Finding("mps", "degraded", "; ".join(problems), meaning, numbers=numbers)
    found = f"a client capped at {_CAP} % has {half.sms} of {whole} SMs, one without a cap has all"
    return Finding("mps", "ok", found, "kernels of several models run at once", numbers=numbers)


def _mapped(mps: Mps, cuda: Cuda) -> Finding:
    """What a worker does first: maps memory that a process outside MPS has made."""
    name, without = "memory under mps", "workers cannot be clients of MPS; " + _TURNS
    try:
        region = cuda.allocate(_SIZE, "pool")
        with region.writer() as writer:
            writer.window(0, _SIZE)[:] = 41
        with Peer("importer", mps.client_env()) as peer:
            answer, _ = peer.ask(Ask(_SIZE, 42), [region.fd])
        region.close()
    except (MuxdError, OSError) as error:
        return Finding(name, "missing", str(error), without)
    seen = (answer.numbers["first"], answer.numbers["last"])
    if seen != (41, 41):
        return Finding(name, "missing", f"a client read {seen} instead of 41", without)
    found = f"a client mapped {_SIZE >> 20} MiB that the daemon had made and filled"
    return Finding(name, "ok", found, "pool and weights reach workers under MPS")


def _running_mps() -> list[Finding]:
    home = default_home()
    if not (home / "pipe").exists():
        return []
    running = Mps(home)
    health = running.health()
    match health.state:
        case "unreachable":
            return []
        case "fault":
            found = f"server {health.server} of {home} is in FAULT: " + "; ".join(running.last_words(2))
            meaning = "a client's fault has reached all clients; new ones are refused until the old ones end"
            return [Finding("running mps", "degraded", found, meaning, "restart muxd")]
    with suppress(MpsUnavailable):
        found = f"{len(running.clients())} clients in {home}, server {health.state}"
        return [Finding("running mps", "ok", found, "a muxd runs, or left its MPS for the next one")]
    return []


def green() -> list[Finding]:
    """The contexts, and whether two processes mean the same SMs by a part."""
    name = "green contexts"
    env = _green_env()
    try:
        contexts = quarters(Driver())
        with Peer("parts", env) as one, Peer("parts", env) as other:
            (first, _), (second, _) = one.ask(Ask()), other.ask(Ask())
    except (Unsplittable, CudaError, PeerFailed) as error:
        return [Finding(name, "degraded", error.message, _FIXED, "a driver for CUDA 12.5 or newer may help")]
    finally:
        with suppress(MpsUnavailable):
            _scratch_mps().stop()
    reports = [[frozenset(part) for part in answer.sets] for answer in (first, second)]
    problem = disjoint(reports)
    sizes = " + ".join(f"{len(part)}" for part in first.sets)
    numbers = {f"part{i}_sms": float(len(part)) for i, part in enumerate(first.sets)}
    if problem:
        meaning = "parts of different workers would overlap; " + _FIXED
        return [Finding(name, "degraded", problem, meaning, numbers=numbers)]
    granted = [int(first.numbers[f"part{i}"]) for i in range(len(first.sets))]
    if granted != [len(part) for part in first.sets] or granted != list(contexts.sms):
        found = f"planned {list(contexts.sms)} SMs, granted {granted}, kernels ran on {sizes}"
        return [
            Finding(name, "degraded", found, "parts are not the size they claim; " + _FIXED, numbers=numbers)
        ]
    found = f"parts of {sizes} SMs, the same in two processes"
    if env == OFF_MPS:
        meaning = "of use within one process only: without MPS, processes take turns"
        return [Finding(name, "degraded", found + ", without MPS", meaning, numbers=numbers)]
    return [Finding(name, "ok", found, "a worker's share can change with every batch", numbers=numbers)]


def _green_env() -> dict[str, str]:
    """As workers would run: under MPS without a percentage, where there is MPS."""
    mps = _scratch_mps()
    try:
        mps.start()
    except MpsUnavailable:
        return dict(OFF_MPS)
    return mps.client_env()


def _view(peer: Peer) -> ClientView:
    answer, _ = peer.ask(Ask())
    return ClientView(bool(answer.numbers["mps"]), int(answer.numbers["sms"]))


def _scratch_mps() -> Mps:
    """The doctor's own daemon: what a running muxd's clients do is not to be disturbed."""
    return Mps(Path(os.environ.get(SCRATCH, f"/tmp/muxd-doctor-{os.getuid()}")) / "mps")
