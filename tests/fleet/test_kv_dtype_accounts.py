"""What K and V of another type change in the daemon: the tokens of a row, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny import tiny_served

from muxd.config import Config, ModelConfig, QuotaConfig
from muxd.device.cpu import Cpu
from muxd.engine.assembly import scheduler
from muxd.errors import ConfigError
from muxd.fleet.accounts import opening_of, place_of
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import shape
from muxd.messages import Dtype, KvDtype, kv_item_bytes
from muxd.models.spec import read_spec
from muxd.pool.arena import Arena

BLOCK, BLOCKS = 1024, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(Cpu(), pool_bytes=BLOCKS * BLOCK, block_bytes=BLOCK)
    yield arena
    arena.close()


def entry(folder: Path, name: str, dtype: Dtype, kv_dtype: KvDtype) -> Entry:
    quota = QuotaConfig(min="16K", max="50%")
    made = Entry(ModelConfig(name, str(folder), dtype=dtype, kv_dtype=kv_dtype, quota=quota))
    made.open()
    return made


@pytest.mark.parametrize(("dtype", "times"), [("bfloat16", 2), ("float16", 2), ("float32", 4)])
def test_rows_of_as_many_blocks_hold_more_tokens(
    folder: Path, arena: Arena, dtype: Dtype, times: int
) -> None:
    own, kept = (entry(folder, kind, dtype, kind) for kind in ("auto", "fp8"))
    config = Config()
    where = place_of(Cpu(), arena, config)
    unit = scheduler(config.scheduler, where, arena.ledger, {})
    openings = [opening_of(one, where, 2) for one in (own, kept)]
    assert openings[0][1] == openings[1][1], "blocks are blocks"
    lanes = [unit.open(*opening).spec for opening in openings]
    tokens = [lane.row_tokens for lane in lanes]
    assert tokens[1] == times * tokens[0] == BLOCK // (2 * 16)
    assert [lane.blocks_per_row for lane in lanes] == [4, 4]
    assert [spec.capacity_rows for spec, _ in openings] == [BLOCKS // 4] * 2
    assert shape(own).kv_bytes(1, dtype) == times * shape(kept).kv_bytes(1, dtype)
    assert shape(own).weight_bytes(1, dtype) == shape(kept).weight_bytes(1, dtype)
    # The same prompt of 64 tokens.
    taken = []
    for lane in lanes:
        before = arena.ledger.free_blocks
        assert arena.ledger.admit(lane.model, [], -(-64 // lane.row_tokens)) is not None
        taken.append(before - arena.ledger.free_blocks)
    assert taken[0] == times * taken[1] == 4 * 64 // tokens[0]
    arena.ledger.audit()


def test_the_same_model_elsewhere_keeps_its_type(folder: Path, arena: Arena) -> None:
    twin = entry(folder, "a", "bfloat16", "fp8").twin("cpu:1")
    spec, _ = opening_of(twin, place_of(Cpu(), arena, Config()), 1)
    assert spec.row_tokens == BLOCK // 32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_block_too_small_for_a_token_may_hold_one_in_float8(folder: Path, dtype: Dtype) -> None:
    spec = read_spec(folder)  # head_dim 16
    assert spec.tokens_per_row(32, kv_item_bytes(dtype, "fp8")) == 1
    with pytest.raises(ConfigError, match="at least"):
        spec.tokens_per_row(32, kv_item_bytes(dtype, "auto"))
    with pytest.raises(ConfigError, match="at least 32 are needed"):
        spec.tokens_per_row(31, kv_item_bytes(dtype, "fp8"))
