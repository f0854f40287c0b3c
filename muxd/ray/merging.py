"""Lists of several hosts as one. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

_ROWS = ("data", "models")  # OpenAI's and Anthropic's; Ollama's
_NAMES = ("id", "name")


def merged(answers: Sequence[bytes]) -> bytes:
    """The first answer, with the rows of all, each name once: as the host has it where the model is ready, if
    there is one. What is no such list is left out; the first answer as it is, if none is. ``answers``: at
    least one."""
    lists = [found for answer in answers if (found := _rows(answer)) is not None]
    if not lists:
        return answers[0]
    whole, field = lists[0]
    rows: dict[str, dict[str, Any]] = {}
    for listed, _ in lists:
        for row in listed.get(field, []):
            name = next((str(row[key]) for key in _NAMES if key in row), "")
            if name not in rows or (row.get("status") == "ready" and rows[name].get("status") != "ready"):
                rows[name] = row
    whole[field] = list(rows.values())
    if "first_id" in whole:
        names = list(rows)
        whole |= {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return msgspec.json.encode(whole)


def _rows(answer: bytes) -> tuple[dict[str, Any], str] | None:
    try:
        whole = msgspec.json.decode(answer, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    field = next((name for name in _ROWS if isinstance(whole.get(name), list)), None)
    return (whole, field) if field is not None else None
