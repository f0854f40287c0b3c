"""The pool as memory: whole head blocks, and one owner of the descriptor."""

import os

import pytest

from muxd.device.cpu import Cpu
from muxd.errors import ConfigError
from muxd.pool.arena import Arena

pytestmark = pytest.mark.usefixtures("no_descriptor_leak")


def test_the_pool_is_whole_head_blocks_of_a_named_memfd() -> None:
    arena = Arena(Cpu(), pool_bytes=10 * 8192 + 5000, block_bytes=8192)
    assert (arena.total_blocks, arena.nbytes) == (10, 81920)
    assert arena.ledger.free_blocks == 10
    assert "memfd:muxd-pool" in os.readlink(f"/proc/self/fd/{arena.fds[0]}")
    assert os.fstat(arena.fds[0]).st_size == 81920
    arena.close()
    with pytest.raises(ValueError, match="closed"):
        _ = arena.fds[0]


def test_a_pool_below_one_block_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"pool\.bytes: 8191"):
        Arena(Cpu(), pool_bytes=8191, block_bytes=8192)


def test_a_pool_beyond_the_memory_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"not enough memory for pool: .* lower pool\.bytes"):
        Arena(Cpu(), pool_bytes=1 << 43, block_bytes=8192)
