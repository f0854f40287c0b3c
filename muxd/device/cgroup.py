"""What the control group allows this process: memory left and CPU quota, cgroup v2 or v1.

Read-only, at start. Called by ``device.cpu``. A container that sees a 64-core host but may use two cores
would otherwise start 64 spinning threads.
"""

from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 1 << 60  # v1 writes "no limit" as a number near 2**63


def memory_left(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes until the tightest limit of this group and its parents; None without a limit."""
    left = [room for folder in _folders("memory", proc, root) if (room := _room(folder)) is not None]
    return min(left, default=None)


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs per second of wall time (1.5: one and a half); None without a quota."""
    quotas = [cpus for folder in _folders("cpu", proc, root) if (cpus := _cpus(folder)) is not None]
    return min(quotas, default=None)


def _folders(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """This group's folder and its parents' up to the mount, for the controller's hierarchy."""
    for line in _text(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        # Inside a container the path may be the host's; the mount itself is then this group's folder.
        folder = base / path.lstrip("/")
        while folder != base:
            yield folder
            folder = folder.parent
        yield base


def _room(folder: Path) -> int | None:
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            return max(0, limit - usage + _reclaimable(folder))
    return None


def _reclaimable(folder: Path) -> int:
    """Page cache the kernel drops under pressure, counted in the usage."""
    for line in _text(folder / "memory.stat").splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def _cpus(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit():  # "max", "-1" or no such file
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
