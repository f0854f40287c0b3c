"""Sizes as people write them: "64M", "25%", "auto"."""

import re

from muxd.errors import ConfigError

AUTO = "auto"
_CPU_POOL = 1 << 30  # "auto" on the CPU, whose memory others need too
_LARGEST = 1 << 62  # bytes: more than any address
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str, *, key: str, whole: int | None = None) -> int:
    """Bytes from "64M", "1.5G", "4096" or, where ``whole`` is given, "10%" of it.

    Raises ConfigError naming ``key``.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(i?B)?\s*", text)
    if match:
        found = float(match[1]) * _UNITS[match[2]]
        if found > _LARGEST:
            raise ConfigError(f"{key} = {_short(text)} is more than there can be; write a smaller size")
        return int(found)
    percent = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", text)
    if percent and whole is not None and float(percent[1]) <= 100:
        return int(float(percent[1]) / 100 * whole)
    allowed = '"512M", "2G" or a number of bytes' + (
        ', or a percentage such as "25%"' if whole is not None else ""
    )
    raise ConfigError(f"{key} = {_short(text)} is not a size; write {allowed}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def pool_bytes(text: str, *, key: str, memory: int, gpu: bool) -> int | None:
    """Bytes of a pool on a device with ``memory`` bytes; None: "auto" on a GPU, what its models leave.

    Raises ConfigError naming ``key``.
    """
    if text.strip() == AUTO:
        return None if gpu else _CPU_POOL
    try:
        return size(text, key=key, whole=memory)
    except ConfigError as error:
        raise ConfigError(f'{error.message}, or "{AUTO}"') from None
