"""Structs and descriptors over a socketpair, both socket kinds, whole and broken."""

import os
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from muxd.device.cpu import Cpu
from muxd.link import fds
from muxd.messages import Setup, TensorEntry

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")

Pair = tuple[socket.socket, socket.socket]


def setup(tensors: int = 3) -> Setup:
    entries = [
        TensorEntry(f"model.layers.{i}.self_attn.q_proj.weight", "bfloat16", (64, 64), i)
        for i in range(tensors)
    ]
    return Setup("m/both/1", "m", "/f", "bfloat16", "ipc://x", "cpu", 8192, 8192, 1, 8192, entries, 2, 2048)


@pytest.fixture(params=["SOCK_STREAM", "SOCK_SEQPACKET"])
def pair(request: pytest.FixtureRequest, no_descriptor_leak: None) -> Iterator[Pair]:
    ends = socket.socketpair(socket.AF_UNIX, getattr(socket, request.param))
    yield ends
    for end in ends:
        end.close()


def test_writes_through_a_passed_descriptor_are_seen_both_ways(pair: Pair) -> None:
    region = Cpu().allocate(1 << 16, "pool")
    here = region.array()
    fds.send(pair[0], setup(), [region.fd])
    message, (received,) = fds.receive(pair[1], Setup)
    assert message == setup()
    assert received != region.fd
    assert not os.get_inheritable(received)
    os.pwrite(received, b"\x2a", 100)
    assert here[100] == 42
    here[200] = 43
    assert os.pread(received, 1, 200) == b"\x2b"
    os.close(received)
    region.close()


def test_a_large_setup_and_the_next_message_arrive_whole(pair: Pair) -> None:
    """2,000 tensors are far more than the socket buffer holds; the reader starts late."""
    large = setup(20_000)
    assert len(msgspec.msgpack.encode(large)) > 1 << 20
    with open(os.devnull) as null:

        def send() -> None:
            for message in (large, setup()):
                fds.send(pair[0], message, [null.fileno()])

        sender = threading.Thread(target=send)
        sender.start()
        for expected in (large, setup()):
            message, received = fds.receive(pair[1], Setup)
            assert message == expected
            assert len(received) == 1
            os.close(received[0])
        sender.join()


def test_end_of_file_is_not_a_malformed_message(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(EOFError):
        fds.receive(pair[1], Setup)


def test_a_sender_that_dies_in_the_middle_leaks_nothing(pair: Pair) -> None:
    with open(os.devnull) as null:
        socket.send_fds(pair[0], [fds._HEADER.pack(b"muxd", 1000, 1)], [null.fileno()])
    pair[0].send(b"half")
    pair[0].close()
    with pytest.raises(EOFError, match="in the middle"):
        fds.receive(pair[1], Setup)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "not a muxd message"),
        (fds._HEADER.pack(b"muxd", 1 << 31, 0), "not a muxd message"),
        (fds._HEADER.pack(b"muxd", 0, 2), "2 file descriptors announced, 1 arrived"),
    ],
)
def test_nonsense_is_refused_and_its_descriptors_closed(pair: Pair, data: bytes, message: str) -> None:
    with open(os.devnull) as null:
        socket.send_fds(pair[0], [data], [null.fileno()])
    with pytest.raises(fds.WireError, match=message):
        fds.receive(pair[1], Setup)


@pytest.mark.parametrize("body", [b"\x81\xa3b\xffd\x01", b"\x81\xa1x" + b"\x91" * 9999])
def test_text_that_is_not_utf8_and_deep_nests_are_malformed(pair: Pair, body: bytes) -> None:
    with open(os.devnull) as null:
        socket.send_fds(pair[0], [fds._HEADER.pack(b"muxd", len(body), 1)], [null.fileno()])
    pair[0].send(body)
    with pytest.raises(fds.WireError, match="malformed Setup"):
        fds.receive(pair[1], Setup)


def test_a_setup_of_wrong_type_names_the_field(pair: Pair) -> None:
    class Almost(msgspec.Struct, tag="setup"):
        worker: int = 5

    with open(os.devnull) as null:
        fds.send(pair[0], Almost(), [null.fileno()])
    with pytest.raises(fds.WireError, match=r"malformed Setup: .*\$\.worker"):
        fds.receive(pair[1], Setup)


def test_too_many_descriptors_are_refused_before_anything_is_sent(pair: Pair) -> None:
    with pytest.raises(fds.WireError, match="too large to send"):
        fds.send(pair[0], setup(), [0] * 17)
    pair[0].close()
    with pytest.raises(EOFError):
        fds.receive(pair[1], Setup)
