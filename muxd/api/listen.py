"""The sockets that the HTTP door listens on."""

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence

from muxd.errors import ConfigError

_LOCAL = "localhost"
_FIRST_HANDED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
BACKLOG = 4096  # connects that wait to be accepted; the kernel's net.core.somaxconn may be less


def listeners(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """One for each address that the ``hosts`` stand for; "::" is every address of both families, "localhost"
    both loopback addresses, where there are both. Port 0 takes one that is free, the same for all. Raises
    OSError, with nothing left open."""
    found: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for host in hosts:
            for family, address in _addresses(host, port):
                try:
                    listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                except OSError:
                    if host == _LOCAL and found:
                        continue  # a machine without IPv6
                    raise
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
                try:
                    listener.bind((address, port))
                except OSError as error:
                    if host == _LOCAL and found and error.errno == errno.EADDRNOTAVAIL:
                        continue
                    raise
                listener.listen(BACKLOG)
                listener.setblocking(False)
                port = port or listener.getsockname()[1]
                found.append(listener)
        undo.pop_all()
    return found


def handed(told: Mapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd listens on for us, by $LISTEN_FDS (sd_listen_fds(3)); none where it does not.
    No child inherits them. Raises ConfigError for one that is no TCP socket."""
    if told.get("LISTEN_PID") != str(os.getpid()):
        return []
    found = []
    for number in range(_FIRST_HANDED, _FIRST_HANDED + int(told.get("LISTEN_FDS", "0"))):
        try:
            os.set_inheritable(number, False)
            one = socket.socket(fileno=number)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS: descriptor {number} is no socket: {error.strerror}") from None
        found.append(one)
        if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
            raise ConfigError(f"muxd.socket: {one.getsockname()} is no TCP address; write ListenStream=PORT")
        one.setblocking(False)
    return found


def is_local(listener: socket.socket) -> bool:
    """Only programs of this machine can connect."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    if host == _LOCAL:  # both, whatever /etc/hosts says: clients may try either first
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in rows))
