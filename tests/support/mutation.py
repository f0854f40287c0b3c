"""Small damages to files: of their bytes, or of what their JSON says. All by one seeded generator."""

import copy
import json
import random
from typing import Any

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 1 << 31, 1 << 63, 10**18, 10**400, -(10**18), 0.0, -1.5, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", "0", "\ud800", "\x00", "</s>", "../x", "/dev/zero", "{{",
    "{% for %}", "é" * 50, [], {}, [[]], [None],
    [1, "a"], {"a": 1}, {"content": 5}, {"type": "BPE"}, [10**18], {"": {}},
]  # fmt: skip


def damaged_bytes(draw: random.Random, content: bytes) -> bytes:
    """One to four changes: bytes replaced, removed, repeated, or the end cut off."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        size = draw.choice((1, 1, 2, 4, 8, 64))
        match draw.randrange(5):
            case 0:
                found[at : at + size] = draw.randbytes(size)
            case 1:
                found[at : at + size] = draw.choice((b"\xff", b"\x00", b"[", b'"', b"9")) * size
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size]
            case 4 if draw.random() < 0.3:
                del found[at:]
    return bytes(found)


def damaged_json(draw: random.Random, content: bytes) -> bytes:
    """One to three values replaced, renamed, removed, repeated or wrapped, anywhere in it."""
    data = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        _damage(draw, data)
    return json.dumps(data).encode()


def _damage(draw: random.Random, data: Any) -> None:
    holder = data
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(holder[key], dict | list) or draw.random() < 0.3:
            break
        holder = holder[key]
    match draw.randrange(6):
        case 0 | 1 | 2:
            holder[key] = copy.deepcopy(draw.choice(NASTY))
        case 3:
            del holder[key]
        case 4:
            holder[key] = _deep(draw, holder[key])
        case 5 if isinstance(holder, dict):
            holder[draw.choice(["x", "type", "", "eos_token_id", str(key) * 2])] = copy.deepcopy(holder[key])


def _deep(draw: random.Random, value: Any) -> Any:
    for _ in range(draw.choice((1, 2, 40, 400))):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value
