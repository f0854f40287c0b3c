"""The addresses that the HTTP door listens on, with real sockets of the loopback."""

import socket
import subprocess
import sys

import pytest
from support import leaks

from muxd.api.listen import handed, is_local, listeners
from muxd.errors import ConfigError

pytestmark = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")


def reached(address: str, port: int) -> bool:
    """Whether a connection comes about."""
    try:
        socket.create_connection((address, port), timeout=60).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("hosts", "over_4", "over_6"),
    [
        (["::"], True, True),
        (["0.0.0.0"], True, False),
        (["::1"], False, True),
        (["127.0.0.1"], True, False),
        (["127.0.0.1", "::1"], True, True),
    ],
)
def test_each_host_takes_the_families_that_it_names(hosts: list[str], over_4: bool, over_6: bool) -> None:
    made = listeners(hosts, 0)
    try:
        ports = {one.getsockname()[1] for one in made}
        assert len(ports) == 1, "a free port is the same for all"
        port = ports.pop()
        assert (reached("127.0.0.1", port), reached("::1", port)) == (over_4, over_6)
        assert all(is_local(one) for one in made) == (not {"::", "0.0.0.0"} & set(hosts))
    finally:
        for one in made:
            one.close()


def test_where_one_address_is_taken_none_stays_open() -> None:
    before = leaks.descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        listeners(["::1", "127.0.0.1"], taken.getsockname()[1])
    assert leaks.descriptors() == before


def test_sockets_of_somebody_else_are_not_taken() -> None:
    assert handed({}) == []
    assert handed({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == []


@pytest.mark.parametrize(
    ("kind", "says"),
    [("AF_UNIX, socket.SOCK_STREAM", "no TCP address"), ("AF_INET, socket.SOCK_DGRAM", "no TCP address")],
)
def test_what_is_handed_on_must_be_tcp(kind: str, says: str) -> None:
    """In a process of its own: descriptor 3 is somebody's here."""
    code = f"""
import os, socket
from muxd.api.listen import handed
one = socket.socket(socket.{kind})
os.dup2(one.fileno(), 3)
handed({{"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ConfigError.__name__ in done.stderr
    assert says in done.stderr
