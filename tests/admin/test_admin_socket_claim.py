"""One daemon per socket path, private from its first moment."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from muxd.admin.claim import claim, release
from muxd.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "muxd.sock"


def test_is_private_even_under_an_open_umask_which_is_given_back(path: Path) -> None:
    before = os.umask(0)
    try:
        with claim(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_replaces_the_socket_of_a_dead_daemon(path: Path) -> None:
    claim(path).close()
    assert path.is_socket()
    with claim(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_live_daemon_is_named_by_its_pid(path: Path) -> None:
    with claim(path) as first:
        with pytest.raises(
            ConfigError, match=rf"already runs with .*muxd.sock \(pid {os.getpid()}\).*muxctl stop"
        ):
            claim(path)
        with socket.socket(socket.AF_UNIX) as client:  # and it still answers
            client.connect(str(path))
        first.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "muxd.sock"
    file.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        claim(file)
    assert file.read_text() == "precious"


def test_a_path_too_long_for_the_kernel_is_refused_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.socket: .* longer than the 107 bytes"):
        claim(tmp_path / ("x" * 120))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"server\.socket: cannot listen on .*Not a directory"):
        claim(tmp_path / "file" / "run" / "muxd.sock")


def test_release_spares_a_successor(path: Path) -> None:
    first = claim(path)
    inode = path.lstat().st_ino
    path.unlink()
    with first, claim(path):
        release(path, inode)
        assert path.is_socket()
        release(path, path.lstat().st_ino)
        assert not path.exists()


def test_of_many_that_start_at_once_over_a_dead_socket_exactly_one_wins(path: Path) -> None:
    claim(path).close()
    won: list[socket.socket] = []
    refused: list[ConfigError] = []
    start = threading.Barrier(8)

    def contend() -> None:
        start.wait()
        try:
            won.append(claim(path))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    with won[0], socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
