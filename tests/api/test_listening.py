"""The addresses that the HTTP door listens on, with real sockets of the loopback."""

import socket

import pytest
from support import leaks

from muxd.api.listen import is_local, listeners

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
