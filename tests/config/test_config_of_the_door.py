"""Settings of the HTTP door: files are found from muxd.toml, and what cannot be is refused by name."""

from pathlib import Path

import pytest

from muxd.config_load import load
from muxd.errors import ConfigError

MODEL = '[[model]]\nname = "a"\npath = "m"\n'


def test_files_lie_beside_the_one_that_names_them(tmp_path: Path) -> None:
    file = tmp_path / "muxd.toml"
    file.write_text(f'[server]\nkeys = "keys.toml"\ntls_cert = "/c.pem"\ntls_key = "k.pem"\n{MODEL}')
    server = load(file, env={}).server
    assert server.keys == str(tmp_path / "keys.toml")
    assert (server.tls_cert, server.tls_key) == ("/c.pem", str(tmp_path / "k.pem"))


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ('tls_cert = "c.pem"', "server.tls_cert and server.tls_key"),
        ('cors_origins = ["chat.example"]', "server.cors_origins"),
        ('cors_origins = ["https://chat.example/"]', "server.cors_origins"),
        ('cors_origins = "*"', "server.cors_origins"),
        ('[[model]]\nname = "b"\npath = "m"\naliases = ["a"]', "model.aliases"),
        ('[[model]]\nname = "b"\npath = "m"\naliases = ["c", "c"]', "model.aliases"),
        ('[[model]]\nname = "b"\npath = "m"\naliases = [""]', "model.aliases"),
        ('[[model]]\nname = "b"\npath = "m"\nsampling = { temperature = 3 }', "sampling.temperature"),
        ('[[model]]\nname = "b"\npath = "m"\nsampling = { temp = 1 }', "sampling"),
    ],
)
def test_what_cannot_be(tmp_path: Path, setting: str, key: str) -> None:
    file = tmp_path / "muxd.toml"
    file.write_text(f"[server]\n{setting}\n{MODEL}")
    with pytest.raises(ConfigError, match=key):
        load(file, env={})
