"""Tiny models with long contexts and a chat template, as tables of muxd.toml."""

import json
from pathlib import Path

from support.tiny import tiny_served

_CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def served(root: Path, name: str, seed: int, inner: int = 96) -> str:
    """A ``[[model]]`` table; its folder is written below ``root``. ``inner``: width of its MLPs."""
    folder = tiny_served(root / name, seed, inner)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    (folder / "chat_template.jinja").write_text(_CHAT)
    return f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n'
