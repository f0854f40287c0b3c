"""Probes of the host: cores, memory, sharing memory between processes, CPU weights."""

import os
from contextlib import suppress
from pathlib import Path

from muxd.device import cgroup
from muxd.device.cpu import Cpu, available_cores, available_memory
from muxd.doctor.finding import Finding
from muxd.doctor.peer import Ask, Peer, PeerFailed
from muxd.kernels import native

_ENOUGH = 2 << 30  # bytes: a small model and a small pool
_CPU_FOLDERS = ("cpu,cpuacct", "cpu")


def cores() -> list[Finding]:
    """What a share of 100 % is."""
    affinity, quota, usable = len(os.sched_getaffinity(0)), cgroup.cpu_quota(), available_cores()
    numbers = {"cores": float(usable), "affinity": float(affinity), **({"quota": quota} if quota else {})}
    found = f"{usable} of {os.cpu_count()}" + (f", quota {quota:g} CPUs" if quota is not None else "")
    if quota is not None and quota < affinity and quota != int(quota):
        meaning = f"muxd uses {usable} threads; the rest of the quota is left over"
        return [Finding("cores", "degraded", found, meaning, "make the quota whole CPUs", numbers=numbers)]
    if usable == 1:
        meaning = "models on the CPU take turns, none runs beside another"
        return [Finding("cores", "degraded", found, meaning, numbers=numbers)]
    return [Finding("cores", "ok", found, f"CPU shares come in steps of {Cpu().rungs[0]} %", numbers=numbers)]


def memory() -> list[Finding]:
    """How large pool and weights may be together."""
    free, source = available_memory()
    found, numbers = f"{free / 2**30:.1f} GiB ({source})", {"free_bytes": float(free)}
    if free < _ENOUGH:
        meaning = "only very small models fit beside their pool"
        return [
            Finding(
                "memory", "degraded", found, meaning, "end other programs or raise the limit", numbers=numbers
            )
        ]
    return [
        Finding("memory", "ok", found, "pool and CPU weights together must stay below it", numbers=numbers)
    ]


def sharing() -> list[Finding]:
    """What a worker does: maps a memfd that came over a socket, reads and writes."""
    name, without = "shared memory", "workers could not map pool and weights"
    try:
        region = Cpu().allocate(1 << 20, "doctor")
        with region.writer() as writer, Peer("reader") as peer:
            window = writer.window(0, 1 << 20)
            window[0] = 41
            answer, _ = peer.ask(Ask(1 << 20, 42), [region.fd])
            region.close()
            seen, written = answer.numbers["first"], int(window[0])
    except (PeerFailed, OSError) as error:
        todo = "allow memfd_create and SCM_RIGHTS (a seccomp profile may forbid them)"
        return [Finding(name, "missing", str(error), without, todo, needed=True)]
    if (seen, written) != (41, 42):
        found = f"another process saw {seen:.0f} instead of 41, and wrote {written} instead of 42"
        return [Finding(name, "missing", found, without, needed=True)]
    return [
        Finding(name, "ok", "memfd and SCM_RIGHTS between two processes", "weights and K/V are never copied")
    ]


def weights(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Finding]:
    """Whether muxd could weigh workers' CPU time: makes a group, sets its weight, takes it away."""
    name, without = "cpu weights", "shares on the CPU are kept by threads and whole batches alone"
    folder, key, value = _own_group(proc, root)
    if folder is None:
        return [Finding(name, "degraded", "no CPU controller for this process", without)]
    group = folder / f"muxd-doctor-{os.getpid()}"
    try:
        group.mkdir()
        (group / key).write_text(value)
        took = (group / key).read_text().strip() == value
    except OSError as error:
        todo = "under systemd: Delegate=yes in muxd.service; in a container: a writable cgroup"
        return [Finding(name, "degraded", f"{folder}: {error.strerror}", without, todo)]
    finally:
        with suppress(OSError):
            group.rmdir()
    if not took:
        return [Finding(name, "degraded", f"{folder / key} does not keep what is written", without)]
    return [
        Finding(name, "ok", f"{key} can be set below {folder}", "CPU time can be weighed between workers")
    ]


def native_step() -> list[Finding]:
    """Whether the CPU's native step is there: compiled now, where it has not been."""
    name, why = "native step", native.missing()
    if why:
        return [Finding(name, "degraded", why, "models are computed by torch, several times slower")]
    found = f"compiled for this CPU, {native.library().path}"
    return [Finding(name, "ok", found, "one call a batch, weights as small as their files")]


def _own_group(proc: Path, root: Path) -> tuple[Path | None, str, str]:
    """(folder, file of the weight, a legal value) of this process's CPU group: version 2, else 1."""
    paths: dict[str, str] = {}
    for line in _lines(proc):
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    unified = root / paths.get("", "/").lstrip("/")
    if "cpu" in _word(unified / "cgroup.controllers"):
        return unified, "cpu.weight", "50"
    for name in _CPU_FOLDERS:
        below = next((path for key, path in paths.items() if "cpu" in key.split(",")), "/")
        for folder in (root / name / below.lstrip("/"), root / name):
            if (folder / "cpu.shares").exists():
                return folder, "cpu.shares", "512"
    return None, "", ""


def _word(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
