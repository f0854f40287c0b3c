"""Values as TOML writes them. Python's own library reads TOML only."""

from typing import Any

import msgspec


def text(value: Any) -> str:
    """One value; of tables, those within a line. Raises TypeError for what TOML has no word for, such as
    None."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # A JSON string is a TOML basic string, but for DEL.
            return msgspec.json.encode(value).decode().replace("\x7f", "\\u007F")
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(text, value))}]"
        case dict():
            pairs = [f"{text(name)} = {text(one)}" for name, one in value.items()]
            return f"{{ {', '.join(pairs)} }}"
        case _:
            raise TypeError(f"{value!r} has no form in TOML")
