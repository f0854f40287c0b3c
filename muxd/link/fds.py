"""One struct and some file descriptors over an inherited Unix socketpair: how a worker gets its memory.

Between the supervisor and a worker, and between the supervisor and the zygote. Works over SOCK_STREAM and
SOCK_SEQPACKET: a fixed header, which carries the descriptors, then the body in pieces a packet can hold.
"""

import os
import socket
import struct
from collections.abc import Sequence
from types import UnionType
from typing import Any, TypeVar, overload

import msgspec

from muxd.errors import MuxdError
from muxd.messages import UNREADABLE, encode

_HEADER = struct.Struct("<4sII")  # magic, bytes of the body, number of descriptors
_INT = struct.Struct("@i")
_MAGIC = b"muxd"
_PIECE = 1 << 15  # well below the smallest send buffer, so that any packet socket takes it whole
_MAX_BODY = 64 << 20
_MAX_FDS = 16

T = TypeVar("T", bound=msgspec.Struct)


class WireError(MuxdError):
    """The other end said something this end cannot read: end the connection, it cannot be resumed."""

    code = "wire_error"


def send(sock: socket.socket, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
    """Send ``message`` with copies of ``fds``; the caller keeps its own.

    Blocks while the other end does not read and the body exceeds the socket buffer (about 200 KiB): call it
    in a thread from an event loop. Raises OSError (BrokenPipeError) when the other end is gone.
    """
    body = encode(message)
    if len(body) > _MAX_BODY or len(fds) > _MAX_FDS:
        raise WireError(f"message of {len(body)} bytes with {len(fds)} descriptors is too large to send")
    socket.send_fds(sock, [_HEADER.pack(_MAGIC, len(body), len(fds))], list(fds))
    for start in range(0, len(body), _PIECE):
        sock.sendall(body[start : start + _PIECE])


@overload
def receive(sock: socket.socket, kind: type[T]) -> tuple[T, list[int]]: ...
@overload
def receive(sock: socket.socket, kind: UnionType) -> tuple[Any, list[int]]: ...
def receive(sock: socket.socket, kind: Any) -> tuple[Any, list[int]]:
    """The next message, decoded as ``kind``, and its descriptors (close-on-exec; the caller's to close).

    Raises EOFError when the other end is gone and WireError for anything malformed; no descriptor leaks.
    """
    header, fds = _header(sock)
    try:
        magic, size, count = _HEADER.unpack(header)
        if magic != _MAGIC or size > _MAX_BODY:
            raise WireError(f"not a muxd message: it starts with {header!r}")
        if count != len(fds):
            raise WireError(
                f"{count} file descriptors announced, {len(fds)} arrived (descriptor limit reached?)"
            )
        return msgspec.msgpack.decode(_body(sock, size), type=kind), fds
    except BaseException as error:
        _close(fds)
        if isinstance(error, UNREADABLE):
            name = getattr(kind, "__name__", "message")
            raise WireError(f"malformed {name}: {error}") from None
        raise


def _header(sock: socket.socket) -> tuple[bytes, list[int]]:
    """The header and every descriptor that came with it.

    Descriptors ride on the first byte of their ``send``, and a receive never runs past the header.
    """
    # Not socket.recv_fds: it drops the flag (seen in Python 3.11), and the descriptors would be inheritable.
    room = socket.CMSG_SPACE(_MAX_FDS * _INT.size)
    header, control, flags, _ = sock.recvmsg(_HEADER.size, room, socket.MSG_CMSG_CLOEXEC)
    passed = [
        data for level, kind, data in control if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    ]
    fds = [fd for data in passed for (fd,) in _INT.iter_unpack(data[: len(data) // _INT.size * _INT.size])]
    try:
        if not header:
            raise EOFError("the other end closed the connection")
        if flags & socket.MSG_TRUNC:
            raise WireError("not a muxd message: its first packet is no header")
        while len(header) < _HEADER.size:
            header += _some(sock, _HEADER.size - len(header))
    except BaseException:
        _close(fds)
        raise
    return header, fds


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _body(sock: socket.socket, size: int) -> bytearray:
    body = bytearray()
    while len(body) < size:
        body += _some(sock, min(_PIECE, size - len(body)))
    return body


def _some(sock: socket.socket, size: int) -> bytes:
    if not (piece := sock.recv(size)):
        raise EOFError("the other end closed the connection in the middle of a message")
    return piece
