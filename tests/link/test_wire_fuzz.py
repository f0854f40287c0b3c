"""Damaged messages at both ends of the wire: each is a message or the project's own error, and nobody is
silenced.

MUXD_FUZZ=1000000 is the long form.
"""

import asyncio
import os
import random
import socket

import msgspec
import zmq

from muxd.link import fds
from muxd.link.daemon_end import DaemonEnd, private_directory
from muxd.messages import (
    UNREADABLE,
    BatchDone,
    BatchFailed,
    Decode,
    MapPool,
    NewRows,
    Prefill,
    Ready,
    Refused,
    Setup,
    Shutdown,
    TensorEntry,
    TokenLogprob,
    Unmapped,
    decode_from_worker,
    decode_to_worker,
    encode,
)

ROUNDS = int(os.environ.get("MUXD_FUZZ", "4000"))
REPLIES = [
    Ready("w/both/1", 77, "2.13", 0.1, 0.2),
    BatchDone(3, [5, 6], 0.1, {0: TokenLogprob(-1.0, [(5, -1.0)])}),
    BatchFailed(3, "out of memory"),
    Unmapped("w", 8192),
    Refused("w", "no such architecture"),
]
COMMANDS = [
    Prefill(1, 50, NewRows(b"\1\0\0\0", b"\2\0\0\0"), [], [4]),
    Decode(2, 50, NewRows(), [1, 2], [(1, 7)], []),
    MapPool(0, 8192),
    Shutdown(),
]
SETUP = Setup(
    "m/1", "m", "/f", "bfloat16", "ipc://x", "cpu", 8, 8, 1, 8, [TensorEntry("t", "bfloat16", (2,), 0)], 2, 9
)


def damaged(message: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut, repeated, or nested into each other."""
    data = bytearray(message)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if at < len(data):
                data[at] = chance.randrange(256)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = data[: chance.randrange(len(data) + 1)]
            case 3:
                data[at:at] = bytes([chance.choice([0x91, 0x81, 0xC1, 0xDD, 0xDB])]) * chance.choice(
                    [1, 3000]
                )
            case _:
                data[at:at] = chance.randbytes(3)
    return bytes(data)


def test_damaged_messages_decode_or_are_unreadable() -> None:
    chance = random.Random(1)
    outcomes = {True: 0, False: 0}
    for _ in range(ROUNDS):
        for decode, kinds in ((decode_from_worker, REPLIES), (decode_to_worker, COMMANDS)):
            try:
                decode(damaged(encode(chance.choice(kinds)), chance))
            except UNREADABLE:
                outcomes[False] += 1
            else:
                outcomes[True] += 1
    assert min(outcomes.values()) > 0  # both were tried


def test_a_worker_that_talks_nonsense_never_silences_another() -> None:
    """Half of the messages are damaged; every good one of the good worker arrives, in order."""
    chance, directory = random.Random(2), private_directory()
    heard: list[int] = []
    rounds = ROUNDS // 8

    async def scene() -> None:
        over = asyncio.Event()

        class Deaf:
            def on_message(self, message: object) -> None: ...

            def on_lost(self, reason: str) -> None: ...

        class Good(Deaf):
            def on_message(self, message: object) -> None:
                if isinstance(message, BatchDone):
                    heard.append(message.batch)
                    if message.batch == rounds - 1:
                        over.set()

        end = DaemonEnd(directory)
        end.announce("good", Good())
        with zmq.Context() as context, context.socket(zmq.DEALER) as good, context.socket(zmq.DEALER) as bad:
            for one, name in ((good, b"good"), (bad, b"bad")):
                one.set(zmq.LINGER, 0)
                one.set(zmq.ROUTING_ID, name)
                one.connect(end.endpoint)
            for batch in range(rounds):
                end.announce("bad", Deaf())  # believed anew each time
                bad.send(damaged(encode(chance.choice(REPLIES)), chance))
                good.send(encode(BatchDone(batch, [], 0.0)))
                if batch % 50 == 0:
                    await asyncio.sleep(0)
            await asyncio.wait_for(over.wait(), 60 + rounds / 1000)
        end.close()
        assert heard == list(range(rounds))

    try:
        asyncio.run(scene())
    finally:
        directory.rmdir()


def test_a_damaged_setup_leaks_no_descriptor(no_descriptor_leak: None) -> None:
    chance = random.Random(3)
    for _ in range(ROUNDS // 8):
        ours, theirs = socket.socketpair()
        with ours, theirs, open(os.devnull) as null:
            body = damaged(encode(SETUP), chance)
            head = fds._HEADER.pack(b"muxd", len(body), 1)
            socket.send_fds(ours, [damaged(head, chance) if chance.random() < 0.3 else head], [null.fileno()])
            ours.sendall(body)
            ours.close()
            try:
                setup, received = fds.receive(theirs, Setup)
            except (EOFError, fds.WireError):
                continue
            assert isinstance(setup, msgspec.Struct)
            for fd in received:
                os.close(fd)
