"""Telling systemd: READY=1, RELOADING=1, STOPPING=1, WATCHDOG=1, STATUS=... (sd_notify(3)).

Without libsystemd. Outside systemd ($NOTIFY_SOCKET unset) every call does nothing.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping, MutableMapping

_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def take(env: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """What systemd has told this process, out of the environment: workers are none of its business."""
    return {name: env.pop(name) for name in _OURS if name in env}


_PATIENCE = 1.0  # seconds that the loop which schedules may stand still for somebody who does not read


def notify(*states: str, env: Mapping[str, str] = os.environ, patience: float = _PATIENCE) -> bool:
    """Send the assignments, such as ``"READY=1"``, in one datagram; True if somebody was told.

    A service manager that cannot be reached, or does not read for ``patience`` seconds, is no reason to fail:
    the result is False then.
    """
    where = env.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return False
    # A leading "@" names an abstract socket, whose real address begins with a zero byte.
    address = "\0" + where[1:] if where.startswith("@") else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(patience)
        try:
            sender.sendto("\n".join(states).encode(), address)
        except OSError:
            return False
    return True


def ready(summary: str, *, env: Mapping[str, str] = os.environ) -> bool:
    """The daemon serves; ``summary`` is what ``systemctl status`` shows."""
    return notify("READY=1", f"STATUS={_line(summary)}", f"MAINPID={os.getpid()}", env=env)


def reloading(*, env: Mapping[str, str] = os.environ) -> bool:
    """The daemon reads its configuration again; ``ready`` ends it. Type=notify-reload wants to know when."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", env=env)


def stopping(summary: str = "stopping", *, env: Mapping[str, str] = os.environ) -> bool:
    """The daemon has begun to end."""
    return notify("STOPPING=1", f"STATUS={_line(summary)}", env=env)


def watchdog_period(env: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life, half of what systemd waits; None: it does not wait for them."""
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 2e6


async def keep_watch(env: Mapping[str, str] = os.environ) -> None:
    """Signs of life from the loop that schedules, until cancelled: a loop that stands still is restarted."""
    while (period := watchdog_period(env)) is not None:
        notify("WATCHDOG=1", env=env, patience=0)
        await asyncio.sleep(period)


def _line(text: str) -> str:
    """One line: a newline in a status would be read as the next assignment."""
    return " ".join(text.split())
