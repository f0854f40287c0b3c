"""How muxctl prints for people: upper-case headers, left-aligned columns, three spaces, no rules."""

from collections.abc import Sequence

from rich.cells import cell_len

from muxd.admin.schemas import Audit, ModelInfo, PoolStatus, ProcessInfo, Status

_GAP = "   "
_MODEL_HEADERS = ("MODEL", "STATE", "SHARE", "WEIGHTS", "KV USED/MIN/MAX", "RUN", "WAIT", "TTFT99", "TOKENS")
_AWAY = ("asleep", "unloaded", "failed")  # nothing of it is on a device
_BINARY = ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def render(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text; cells lose control characters, which could otherwise rewrite the terminal."""
    lines = [list(headers), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(headers))]
    return "\n".join(_GAP.join(map(_padded, line, widths)).rstrip() for line in lines)


def models(rows: Sequence[ModelInfo]) -> str:
    """With a column SLO, the rolling goodput, where a model has a target; DEVICE where there are several; TP,
    over how many of them a model is cut, where one is;
    KV TYPE where one has K and V of another type than its own; PINNED where one is."""
    measured = any(row.config.ttft_slo or row.config.tpot_slo for row in rows)
    several = any(row.device for row in rows)
    typed = any(row.config.kv_dtype != "auto" for row in rows)
    pinned = any(row.pinned for row in rows)
    cut = any(row.config.tp > 1 for row in rows)
    headers = (
        *_MODEL_HEADERS[:2], *(["PINNED"] if pinned else []), *(["DEVICE"] if several else []),
        *(["TP"] if cut else []),
        *_MODEL_HEADERS[2:5],
        *(["KV TYPE"] if typed else []), *_MODEL_HEADERS[5:], *(["SLO"] if measured else []),
        "SINCE", "DETAIL",
    )  # fmt: skip
    return render(headers, [_model(row, measured, several, typed, pinned, cut) for row in rows])


def processes(rows: Sequence[ProcessInfo]) -> str:
    several, cut = any(row.device for row in rows), any(row.rank for row in rows)
    headers = (
        "PROCESS", "PID", *(["DEVICE"] if several else []), *(["RANK"] if cut else []), "PHASES", "CORES",
        "MEMORY", "CPU", "RESTARTS", "UP",
    )  # fmt: skip
    return render(headers, [_process(row, several, cut) for row in rows])


def status(now: Status) -> str:
    """Name and value, one a line."""
    requests = now.requests
    lines = {
        "muxd": f"{now.version}, pid {now.pid}, up {duration(now.uptime_seconds)}",
        "http": now.address,
        "policy": f"{now.policy}, {_count(now.cores, 'core')}",
        "pool": _pool(now.pool),
        **{f"  {name}": _pool(pool) for name, pool in now.devices.items()},
        "models": (", ".join(f"{count} {state}" for state, count in sorted(now.models.items())) or "none")
        + (f"; {now.pinned} pinned" if now.pinned else ""),
        "requests": f"{requests.running} running, {requests.waiting} waiting; {requests.served} served, "
        f"{requests.refused} refused, {requests.cancelled} cancelled, {requests.failed} failed",
    }
    width = max(len(name) for name in lines)
    return "\n".join(f"{name:<{width}}{_GAP}{clean(value)}" for name, value in lines.items())


def _pool(pool: PoolStatus) -> str:
    free = 100 * pool.free_blocks // pool.total_blocks if pool.total_blocks else 0
    return (
        f"{size(pool.bytes)} in {pool.total_blocks} blocks of {size(pool.block_bytes)}; "
        f"{pool.free_blocks} free ({free} %), {pool.cached_blocks} cached"
    )


def audit(books: Audit) -> str:
    """One line; the fault in its own words."""
    counts = f"{books.free_blocks} free, {books.cached_blocks} cached, {books.held_blocks} held"
    return clean(books.fault) or f"all {books.total_blocks} blocks are accounted for: {counts}"


def size(count: int) -> str:
    """Bytes in the configuration's own units, which are binary: "512M", "1.5G"."""
    for unit, letter in _BINARY:
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + letter
    return str(count)


def duration(seconds: float) -> str:
    """The largest whole unit: "7s", "5m", "2h", "3d"."""
    for unit, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= unit:
            return f"{int(seconds // unit)}{letter}"
    return f"{int(seconds)}s"


def _model(row: ModelInfo, measured: bool, several: bool, typed: bool, pinned: bool, cut: bool) -> list[str]:
    return [
        row.name,
        row.state,
        *(["yes" if row.pinned else "-"] if pinned else []),
        *([row.device or "-"] if several else []),
        *([str(row.config.tp)] if cut else []),
        f"{row.share}%" if row.state not in _AWAY else "-",
        size(row.weights_bytes),
        "/".join(map(size, (row.kv_used_bytes, row.kv_min_bytes, row.kv_max_bytes))),
        *([row.config.kv_dtype] if typed else []),
        str(row.running),
        str(row.waiting),
        "-" if row.ttft_p99_ms is None else f"{row.ttft_p99_ms:.0f}ms",
        str(row.tokens_total),
        *(["-" if row.goodput is None else f"{100 * row.goodput:.0f}%"] if measured else []),
        duration(row.since_seconds),
        row.detail,
    ]


def _process(row: ProcessInfo, several: bool, cut: bool) -> list[str]:
    return [
        row.model or row.role,
        str(row.pid),
        *([row.device or "-"] if several else []),
        *([str(row.rank) if row.phases else "-"] if cut else []),
        row.phases or "-",
        str(row.cores),
        size(row.memory_bytes),
        f"{row.cpu_seconds:.1f}s",
        str(row.restarts),
        duration(row.uptime_seconds),
    ]


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - cell_len(cell))


def clean(cell: str) -> str:
    """Without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in cell)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
