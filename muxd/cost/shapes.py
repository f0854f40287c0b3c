"""The shapes of models as far as they cost time and memory: a small catalogue, and read from a folder.

The catalogue's numbers are those of each model's published ``config.json``; ``parameters`` counts every
weight once.
"""

from pathlib import Path

from msgspec import Struct

from muxd.cost.experts import ExpertShape, touched
from muxd.cost.profile import Shape
from muxd.errors import ConfigError
from muxd.messages import ITEM_BYTES, Dtype, KvDtype, kv_item_bytes
from muxd.models.delta import DeltaNet
from muxd.models.spec import ModelSpec, read_spec


class ModelShape(Struct, frozen=True):
    """A decoder-only transformer with gated feed-forward layers."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    parameters: int
    tied: bool = False  # the output matrix is the embedding
    max_positions: int = 2048
    kv_dtype: KvDtype = "auto"  # how K and V are kept
    packed: int = 0  # bytes of all weights where they do not lie as the model's type; 0: they do
    experts: ExpertShape | None = None  # in place of the MLP of some layers
    delta: DeltaNet | None = None  # in place of some layers' attention
    row_blocks: int = 0  # see ``muxd.cost.profile.Shape``; such a model is not cut
    windows: tuple[int | None, ...] = ()  # see there
    layer_blocks: tuple[int, ...] = ()
    inputs: int = 0  # numbers that all layers together look up of a token, beside its embedding

    @property
    def head_parameters(self) -> int:
        """The output matrix: computed with once a sequence in prefill, once a token in decode."""
        return self.vocab * self.hidden

    @property
    def body_parameters(self) -> int:
        """Every token passes through these; an embedding is looked up, not multiplied."""
        looked_up = self.vocab * self.inputs
        return self.parameters - looked_up - self.head_parameters * (1 if self.tied else 2)

    @property
    def expert_parameters(self) -> int:
        """Of all experts: those that a batch reads only where one of its tokens has chosen them."""
        return 0 if self.experts is None else self.experts.parameters(self.hidden)

    @property
    def active_parameters(self) -> float:
        """That one token is computed with, and the embeddings."""
        return self.touched_parameters(1)

    def touched_parameters(self, tokens: float) -> float:
        """That a batch of so many tokens is computed with, expected, and the embeddings."""
        if self.experts is None:
            return self.parameters
        part = touched(self.experts.count, self.experts.chosen, tokens)
        return self.parameters - (1 - part) * self.expert_parameters

    @property
    def mlp_numbers(self) -> int:
        """Numbers that one token's MLP holds at once: gate, up and their product; of experts each's, and what
        each gives, in two orders."""
        dense = 3 * self.intermediate
        if self.experts is None:
            return dense
        mixed = self.experts.chosen * (3 * self.experts.inner + 2 * self.hidden)
        if self.experts.beside:
            return dense + mixed
        return mixed if self.experts.layers == self.layers else max(dense, mixed)

    def kv_heads_on(self, gpus: int) -> int:
        """KV heads each of ``gpus`` devices holds; with fewer heads than devices a head is on several."""
        return max(1, -(-self.kv_heads // gpus))

    @property
    def attending(self) -> int:
        """Layers that keep K and V; the others keep a state."""
        return self.layers - (self.delta.count if self.delta else 0)

    @property
    def state_bytes(self) -> int:
        """Of one sequence, however long it is."""
        return self.delta.state_bytes if self.delta else 0

    def kv_bytes(self, gpus: int = 1, dtype: Dtype = "bfloat16") -> int:
        """Bytes of one token's K and V on each of ``gpus`` devices."""
        item = kv_item_bytes(dtype, self.kv_dtype)
        blocks = self.row_blocks or self.layers * self.kv_heads_on(gpus)
        return 2 * blocks * self.head_dim * item

    def kept_bytes(self, tokens: int, gpus: int = 1, dtype: Dtype = "bfloat16") -> int:
        """Bytes of K and V on each of ``gpus`` devices that a sequence of so many tokens still needs: of a
        layer with a window only the last ones."""
        layers = self.layer_blocks or (self.kv_heads_on(gpus),) * self.layers
        windows = self.windows or (None,) * self.layers
        kept = sum(
            blocks * min(tokens, window or tokens) for blocks, window in zip(layers, windows, strict=True)
        )
        return 2 * kept * self.head_dim * kv_item_bytes(dtype, self.kv_dtype)

    def weight_bytes(self, gpus: int = 1, dtype: Dtype = "bfloat16") -> int:
        """On each of ``gpus`` devices: matrices cut evenly, the embedding whole (``models/cut.py``)."""
        every = self.packed or self.parameters * ITEM_BYTES[dtype]
        whole = every * self.head_parameters // self.parameters if gpus > 1 else 0
        return whole + -(-(every - whole) // gpus)

    def degrees(self) -> list[int]:
        """Tensor-parallel degrees that cut the query heads evenly and share the KV heads evenly."""
        return [
            gpus
            for gpus in (1, 2, 4, 8)
            if (gpus == 1 or not self.row_blocks)
            and self.heads % gpus == 0
            and (self.kv_heads % gpus == 0 or gpus % self.kv_heads == 0)
        ]

    def on(self, gpus: int, dtype: Dtype = "bfloat16") -> Shape:
        """What the ledger of one of ``gpus`` devices must know."""
        heads = self.kv_heads_on(gpus)
        sizes = self.layers, heads, self.head_dim, self.max_positions
        rows = self.row_blocks, self.delta, self.windows, self.layer_blocks
        return Shape(*sizes, dtype, self.kv_dtype, *rows)


def _sliding(layers: int, window: int, whole: int) -> tuple[int | None, ...]:
    """Every ``whole``-th layer sees everything."""
    return tuple(None if (layer + 1) % whole == 0 else window for layer in range(layers))


def _llama(layers: int, hidden: int, heads: int, intermediate: int, parameters: int) -> ModelShape:
    return ModelShape(layers, hidden, heads, heads, 128, intermediate, 32_000, parameters)


# LLaMA: Touvron et al. 2023, table 2 ("30B" has 32.5). Others: config.json on the Hugging Face Hub.
CATALOGUE = {
    "llama-7b": _llama(32, 4096, 32, 11_008, 6_738_415_616),
    "llama-13b": _llama(40, 5120, 40, 13_824, 13_015_864_320),
    "llama-30b": _llama(60, 6656, 52, 17_920, 32_528_943_616),
    "llama-65b": _llama(80, 8192, 64, 22_016, 65_285_660_672),
    "llama-3.2-1b": ModelShape(16, 2048, 32, 8, 64, 8192, 128_256, 1_235_814_400, True, 131_072),
    "llama-3.2-3b": ModelShape(28, 3072, 24, 8, 128, 8192, 128_256, 3_212_749_824, True, 131_072),
    "llama-3-8b": ModelShape(32, 4096, 32, 8, 128, 14_336, 128_256, 8_030_261_248, False, 8192),
    "llama-3-70b": ModelShape(80, 8192, 64, 8, 128, 28_672, 128_256, 70_553_706_496, False, 8192),
    "mistral-7b": ModelShape(32, 4096, 32, 8, 128, 14_336, 32_000, 7_241_732_096, False, 32_768),
    "qwen2.5-0.5b": ModelShape(24, 896, 14, 2, 64, 4864, 151_936, 494_032_768, True, 32_768),
    "qwen2.5-1.5b": ModelShape(28, 1536, 12, 2, 128, 8960, 151_936, 1_543_714_304, True, 32_768),
    "qwen2.5-7b": ModelShape(28, 3584, 28, 4, 128, 18_944, 152_064, 7_615_616_512, False, 32_768),
    "qwen2.5-14b": ModelShape(48, 5120, 40, 8, 128, 13_824, 152_064, 14_770_033_664, False, 32_768),
    "qwen2.5-32b": ModelShape(64, 5120, 40, 8, 128, 27_648, 152_064, 32_763_876_352, False, 32_768),
    "qwen2.5-72b": ModelShape(80, 8192, 64, 8, 128, 29_568, 152_064, 72_706_203_648, False, 32_768),
    "qwen3-0.6b": ModelShape(28, 1024, 16, 8, 128, 3072, 151_936, 596_049_920, True, 40_960),
    "qwen3-8b": ModelShape(36, 4096, 32, 8, 128, 12_288, 151_936, 8_190_735_360, False, 40_960),
    "mixtral-8x7b": ModelShape(
        32, 4096, 32, 8, 128, 14_336, 32_000, 46_702_792_704, False, 32_768,
        experts=ExpertShape(8, 2, 14_336, 32),
    ),
    "gpt-oss-20b": ModelShape(
        24, 2880, 64, 8, 64, 2880, 201_088, 20_914_757_184, False, 131_072,
        experts=ExpertShape(32, 4, 2880, 24), windows=_sliding(24, 128, 2),
    ),
    "gpt-oss-120b": ModelShape(
        36, 2880, 64, 8, 64, 2880, 201_088, 116_829_156_672, False, 131_072,
        experts=ExpertShape(128, 4, 2880, 36), windows=_sliding(36, 128, 2),
    ),
    "qwen3-30b-a3b": ModelShape(
        48, 2048, 32, 4, 128, 6144, 151_936, 30_532_122_624, False, 40_960,
        experts=ExpertShape(128, 8, 768, 48),
    ),
    "phi-4": ModelShape(40, 5120, 40, 10, 128, 17_920, 100_352, 14_659_507_200, False, 16_384),
    "phi-4-mini": ModelShape(32, 3072, 24, 8, 128, 8192, 200_064, 3_836_021_760, True, 131_072),
    "smollm3-3b": ModelShape(36, 2048, 16, 4, 128, 11_008, 128_256, 3_075_098_624, True, 65_536),
    "gemma-2-2b": ModelShape(
        26, 2304, 8, 4, 256, 9216, 256_000, 2_614_341_888, True, 8192, windows=_sliding(26, 4096, 2)
    ),
    "gemma-2-9b": ModelShape(
        42, 3584, 16, 8, 256, 14_336, 256_000, 9_241_705_984, True, 8192, windows=_sliding(42, 4096, 2)
    ),
    "smollm2-135m": ModelShape(30, 576, 9, 3, 64, 1536, 49_152, 134_515_008, True, 8192),
    "gemma-3-270m": ModelShape(
        18, 640, 4, 1, 256, 2048, 262_144, 268_098_176, True, 32_768, windows=_sliding(18, 512, 6)
    ),
}  # fmt: skip


def known(name: str) -> ModelShape:
    """From the catalogue. Raises ConfigError that lists it."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise ConfigError(
            f"no model {name!r} in the catalogue, only: {', '.join(CATALOGUE)}; "
            "read the shape from the model's folder"
        ) from None


def read_shape(folder: Path) -> ModelShape:
    """From ``config.json``. Raises ModelFolderError naming the file and field."""
    return of_spec(read_spec(folder))


def of_spec(spec: ModelSpec, kv_dtype: KvDtype = "auto") -> ModelShape:
    """``parameters`` by the matrices of the spec; norms, biases and routers, under 0.1 %, are left out."""
    layout = spec.row_layout
    heads = (2 + spec.output_gate) * spec.heads
    attention = sum(
        spec.hidden_size * (heads + 2 * one.kv_heads * one.own) * one.head_dim
        for layer, one in enumerate(layout.layers)
        if not spec.keeps_state(layer)
    )
    recurrent = spec.delta.count * spec.delta.parameters(spec.hidden_size) if spec.delta else 0
    dense = sum(3 * spec.hidden_size * spec.inner_of(i) for i in range(spec.layers) if spec.dense(i))
    experts = None
    if (own := spec.experts) is not None:
        experts = ExpertShape(own.count, own.chosen, own.inner, sum(own.layers), own.beside)
        dense += experts.layers * 3 * spec.hidden_size * own.shared
    mixtures = 0 if experts is None else experts.parameters(spec.hidden_size)
    inputs = spec.layers * spec.layer_inputs  # gate, out and what makes them of the embedding; the table
    own_inputs = inputs * (3 * spec.hidden_size + spec.vocab_size)
    vocabulary = spec.vocab_size * spec.hidden_size * (1 if spec.tied_embeddings else 2)
    return ModelShape(
        layers=spec.layers,
        hidden=spec.hidden_size,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=layout.head_dim,
        intermediate=spec.intermediate_size,
        vocab=spec.vocab_size,
        parameters=vocabulary + attention + recurrent + dense + mixtures + own_inputs,
        tied=spec.tied_embeddings,
        max_positions=spec.max_positions,
        kv_dtype=kv_dtype,
        experts=experts,
        delta=spec.delta,
        row_blocks=layout.blocks if spec.layer_heads else 0,
        windows=spec.kept_windows if any(spec.kept_windows) else (),
        layer_blocks=spec.layer_blocks if spec.layer_heads else (),
        inputs=inputs,
    )
