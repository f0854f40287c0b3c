"""Fields as one line of ``key=value``, which log programs read and people too. Used where lines are made."""

import json
import re
from collections.abc import Mapping

_PLAIN = re.compile(r"[\w./:@%+,-]+", re.ASCII)


def line(fields: Mapping[str, object]) -> str:
    """``id=4f status=200 finish="content filter"``: quoted where a value could break the line apart."""
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
