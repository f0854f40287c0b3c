"""The ranks' parts of a model, put together, are the model; what cannot be cut is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray
from support.block_folders import make_blocks
from support.mxfp4_folders import make_mxfp4
from support.tiny_models import (
    bert,
    gemma3,
    gemma4,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen3,
)

from muxd.device.base import HostWriter
from muxd.errors import ModelFolderError
from muxd.models.cut import Rank, cut_spec, pieces
from muxd.models.mixture import Experts
from muxd.models.registry import ARCHITECTURES
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.tensors import Part, Wanted, wanted
from muxd.models.weights import WeightPlan, fill, plan
from muxd.worker.mapped import MappedWeights

MADE: dict[str, Callable[..., Any]] = {
    "LlamaForCausalLM": llama, "MistralForCausalLM": mistral, "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3, "Gemma3ForCausalLM": gemma3, "BertModel": bert, "MixtralForCausalLM": mixtral,
    "OlmoeForCausalLM": olmoe, "GptOssForCausalLM": gpt_oss, "Olmo2ForCausalLM": olmo2,
    "Olmo3ForCausalLM": olmo3, "Phi3ForCausalLM": phi3, "Gemma4ForCausalLM": gemma4,
}  # fmt: skip
REFUSED = {"BertModel", "Gemma4ForCausalLM"}
CUT = sorted(ARCHITECTURES.keys() & MADE.keys() - REFUSED)  # tests/worker/test_ranks.py has all


def loaded(layout: WeightPlan) -> MappedWeights:
    """The region was full of something else."""
    region = np.full(layout.bytes, 0xFF, dtype=np.uint8)
    fill(layout, HostWriter(region))
    return MappedWeights(layout.tensors, torch.from_numpy(region))


def spec_of(shape: tuple[int, ...], spec: ModelSpec) -> ModelSpec:
    """With whatever is cut: biases, sinks, experts in all layers but the first, norms over all heads."""
    group, kv_heads, inner, vocab, _ = shape
    sparse = tuple(layer > 0 for layer in range(spec.layers))
    return structs.replace(
        spec, heads=group * kv_heads, kv_heads=kv_heads, intermediate_size=inner, vocab_size=vocab,
        qkv_bias=True, o_bias=True, tied_embeddings=False, sinks=True, qk_norm=False, wide_qk_norm=True,
        experts=Experts(3, 2, inner + 1, True, sparse, biased=True, stored="stacked"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def any_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("any")
    qwen3(folder)
    return read_spec(folder)


inner_sizes = st.integers(1, 40) | st.sampled_from([64, 95, 96, 160])
shapes = st.tuples(st.integers(1, 6), st.integers(1, 6), inner_sizes, st.integers(1, 40), st.integers(2, 6))


@given(shapes)
def test_every_row_and_column_is_somebodys_and_sums_count_it_once(
    any_spec: ModelSpec, shape: tuple[int, ...]
) -> None:
    _, kv_heads, *_, ranks = shape
    spec = spec_of(shape, any_spec)
    if spec.heads < ranks or (kv_heads < ranks and ranks % kv_heads):
        with pytest.raises(ModelFolderError, match=f"cannot be cut over {ranks} devices"):
            cut_spec(spec, ranks)
        return
    own = cut_spec(spec, ranks)
    assert own.heads % own.kv_heads == 0
    theirs = {tensor.name: tensor for tensor in wanted(own)}
    for tensor in wanted(spec):
        cuts = [pieces(spec, tensor, Rank(number, ranks)) for number in range(ranks)]
        for index, stored in enumerate(tensor.parts):
            whole = stored.shape
            seen = np.zeros(whole[cuts[0][index].axis] if cuts[0] else 1, dtype=int)
            for cut in cuts:
                if cut is None:
                    seen += 1
                    continue
                piece = cut[index]
                seen[piece.first : piece.first + piece.length] += 1
                assert 0 <= piece.length <= piece.size
                if tensor.name != "head":  # whose size the spec of a rank does not say
                    assert piece.size == theirs[tensor.name].parts[index][1][piece.axis]
            keys = (index and ".qkv" in tensor.name) or tensor.name.endswith(".k_norm")
            shared = cuts[0] is None or (keys and kv_heads < ranks)
            assert (seen >= 1).all()
            assert shared or (seen == 1).all(), tensor.name
        if tensor.name.endswith(("q_norm", "k_norm")):
            lengths = sum(cut[0].length for cut in cuts if cut is not None)
            assert lengths == own.all_heads[tensor.name.endswith("k_norm")] * spec.head_dim


@given(shapes)
def test_queries_are_with_their_keys(any_spec: ModelSpec, shape: tuple[int, ...]) -> None:
    group, *_, ranks = shape
    spec = spec_of(shape, any_spec)
    try:
        own = cut_spec(spec, ranks)
    except ModelFolderError:
        return
    qkv = next(tensor for tensor in wanted(spec) if tensor.name == "layers.0.qkv")
    for number in range(ranks):
        queries, keys, values = pieces(spec, qkv, Rank(number, ranks)) or []
        assert keys == values
        for head in range(queries.length // spec.head_dim):
            key = keys.first // spec.head_dim + head // (own.heads // own.kv_heads)
            assert (queries.first // spec.head_dim + head) // group == key


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", CUT)
def test_the_ranks_regions_put_together_are_the_files(name: str, ranks: int, tmp_path: Path) -> None:
    """By what is computed: x Wᵀ of all rows, and the sum of the columns' products."""
    MADE[name](tmp_path)
    spec = read_spec(tmp_path)
    if ranks == 3 and spec.kv_heads < 3 and 3 % spec.kv_heads:
        with pytest.raises(ModelFolderError, match=r"model.tp: .*KV heads are fewer"):
            cut_spec(spec, ranks)
        return
    whole = loaded(plan(tmp_path, spec, "float32"))
    layouts = [plan(tmp_path, spec, "float32", rank=Rank(number, ranks)) for number in range(ranks)]
    assert all(one.tensors == layouts[0].tensors and one.bytes == layouts[0].bytes for one in layouts)
    parts = [loaded(layout) for layout in layouts]
    for tensor in wanted(structs.replace(spec, tied_embeddings=layouts[0].tied)):
        same = flat(whole, tensor)
        cuts = [pieces(spec, tensor, Rank(number, ranks)) for number in range(ranks)]
        for cut, part in zip(cuts, parts, strict=True):
            check(same, flat(part, tensor), cut, tensor)


def flat(weights: MappedWeights, tensor: Wanted) -> NDArray[Any]:
    """Of a stack all rows one after another."""
    found = weights.tensor(tensor.name).numpy()
    return found.reshape(-1, found.shape[-1]) if tensor.stack else found


def check(whole: NDArray[Any], part: NDArray[Any], cut: Any, tensor: Wanted) -> None:
    if cut is None:
        assert np.array_equal(part, whole)
        return
    from_, to = 0, 0
    for piece, stored in zip(cut, tensor.parts, strict=True):
        if piece.axis:
            theirs = whole[:, piece.first : piece.first + piece.length]
            assert np.array_equal(part[:, : piece.length], theirs)
            assert not part[:, piece.length :].any()
            continue
        mine = part[to : to + piece.size]
        assert np.array_equal(mine[: piece.length], whole[from_ + piece.first :][: piece.length])
        assert not mine[piece.length :].any()
        from_, to = from_ + stored.shape[0], to + piece.size


def test_types_are_converted_as_without_a_cut(tmp_path: Path) -> None:
    llama(tmp_path)
    spec = read_spec(tmp_path)
    whole = loaded(plan(tmp_path, spec, "bfloat16")).tensor("layers.1.down")
    ranks = [loaded(plan(tmp_path, spec, "bfloat16", rank=Rank(number, 2))) for number in range(2)]
    both = torch.cat([rank.tensor("layers.1.down") for rank in ranks], 1)
    assert torch.equal(both[:, : whole.shape[1]], whole)
    assert not both[:, whole.shape[1] :].any()


def test_blocks_are_cut_between_blocks_or_refused_by_name(tmp_path: Path) -> None:
    llama(tmp_path / "even", hidden_size=128, intermediate_size=128, num_attention_heads=4)
    make_blocks(tmp_path / "even", "q8_0")
    spec = read_spec(tmp_path / "even")
    whole = loaded(plan(tmp_path / "even", spec, "float32")).tensor("layers.0.down")
    parts = [
        loaded(plan(tmp_path / "even", spec, "float32", rank=Rank(i, 2))).tensor("layers.0.down")
        for i in (0, 1)
    ]
    assert torch.equal(torch.cat(parts, 1), whole)
    llama(tmp_path / "odd", hidden_size=128, intermediate_size=96, num_attention_heads=4)
    make_blocks(tmp_path / "odd", "q8_0")
    with pytest.raises(ModelFolderError, match=r"mlp.down_proj.weight has blocks of 32 numbers.*24 of 96"):
        plan(tmp_path / "odd", read_spec(tmp_path / "odd"), "float32", rank=Rank(1, 4))


def test_experts_as_published_are_cut_between_blocks_or_refused_by_name(tmp_path: Path) -> None:
    """MXFP4 of three blocks in a row: two and one over two ranks, none for the fourth of four."""
    make_mxfp4(tmp_path, gpt_oss(tmp_path))
    spec = read_spec(tmp_path)
    whole = loaded(plan(tmp_path, spec, "float32"))
    layouts = [plan(tmp_path, spec, "float32", rank=Rank(number, 2)) for number in range(2)]
    assert layouts[0].tensors == layouts[1].tensors
    parts = [loaded(layout) for layout in layouts]
    for tensor in wanted(spec):
        for number, part in enumerate(parts):
            cut = pieces(spec, tensor, Rank(number, 2))
            check(flat(whole, tensor), flat(part, tensor), cut, tensor)
    with pytest.raises(ModelFolderError, match=r"model.tp: .*experts.down_proj_blocks has blocks of 32"):
        plan(tmp_path, spec, "float32", rank=Rank(0, 4))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_cut_says_so(name: str, tmp_path: Path) -> None:
    MADE[name](tmp_path)
    with pytest.raises(ModelFolderError, match=f"model.tp: {name} cannot be cut over 2 devices"):
        cut_spec(read_spec(tmp_path), 2)


def test_a_tensor_that_nobody_has_described_is_refused_by_name(any_spec: ModelSpec) -> None:
    for tensor in (
        Wanted("layers.0.lookup", (Part("lookup.weight", (4, 8)),)),
        Wanted("layers.0.q_norm", (Part("q_norm.weight", (2 * any_spec.head_dim,)),)),
    ):
        with pytest.raises(ModelFolderError, match=f"its tensor {tensor.name} is cut"):
            pieces(any_spec, tensor, Rank(0, 2))
