"""One scripted daemon for all tests that leave it as it was: it keeps nothing of what it is told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.scripted_daemon import scripted


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its socket."""
    path = tmp_path_factory.mktemp("door") / "muxd.sock"
    with scripted(path):
        yield path
