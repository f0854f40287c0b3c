"""``muxctl devices``: how the GPUs of a running muxd's host are."""

from muxd.admin.schemas import DeviceInfo
from muxd.cli.asking import PROGRAM, Json, Socket, client_at, show
from muxd.cli.failing import sentences
from muxd.cli.tables import render, size

_HEADERS = ("GPU", "NAME", "MEMORY", "UTIL", "POWER", "TEMP", "THROTTLED", "HEALTH")


def devices(socket: Socket = "", json: Json = False) -> None:
    """List the host's GPUs: memory, load, power, why they are slow, whether they are sound."""
    with sentences(PROGRAM):
        client = client_at(socket)
        rows = client.devices()
        show(client, rows, json, table(rows))


def table(rows: list[DeviceInfo]) -> str:
    """What a device does not tell is "-"; a host without GPUs says so."""
    if not rows:
        return "This host has no NVIDIA GPU that its driver tells of: models are served on the CPU."
    return render(_HEADERS, [_device(row) for row in rows])


def _device(row: DeviceInfo) -> list[str]:
    return [
        str(row.index),
        row.name or "-",
        f"{size(row.memory_used_bytes)}/{size(row.memory_total_bytes)}" if row.memory_total_bytes else "-",
        _known(row.utilization_percent, "%"),
        _known(row.power_watts, "W"),
        _known(row.temperature_celsius, "C"),
        ", ".join(row.throttled) or "-",
        row.health,
    ]


def _known(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f}{unit}"
