"""A model's weights as the native step takes them: packed matrices in the shared region, norms and biases as
float32 of its own, which are a thousandth of them.
"""

import ctypes
import logging
from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from muxd.kernels import native
from muxd.kernels.native import (
    FORMATS,
    ROPES,
    BatchFields,
    LayerFields,
    LayerLows,
    LinearFields,
    LinearShape,
    LowFields,
    MatrixFields,
    MixtureFields,
    ModelFields,
)
from muxd.kernels.row_layout import LayerRows
from muxd.messages import LoraPart, Setup, TensorEntry
from muxd.models.delta import DeltaNet
from muxd.models.mixture import Experts
from muxd.models.packing import part_names
from muxd.models.rope import Rope
from muxd.models.spec import ModelSpec
from muxd.models.state_layout import state_layout, state_rows
from muxd.models.tensors import BETA, LOOKED_UP, ROUTER, SHARED_GATE
from muxd.worker.mapped import DTYPES, Views
from muxd.worker.native_pool import NativePool

_LANES = 16
_PARTS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}

_log = logging.getLogger("muxd.worker")


class NativeModel:
    """All layers at once, and ``muxd.models.layers.Head``."""

    def __init__(self, spec: ModelSpec, setup: Setup, weights: Tensor):
        self.threads, self._short = 0, False
        self._spec, self._kept = spec, list[object]()
        self._entries = {entry.name: entry for entry in setup.tensors}
        self._views, self._weights = Views(setup.tensors, weights), weights
        self._states = None if spec.delta is None else state_layout(spec.delta, setup.block_bytes)
        attending = [layer for layer in range(spec.layers) if not spec.keeps_state(layer)]
        ropes = list(dict.fromkeys(map(self._turning, attending)))
        layers = (LayerFields * spec.layers)(*(self._layer(i, ropes) for i in range(spec.layers)))
        self._dtype = DTYPES[setup.dtype]
        scale = self._rounded(spec.embed_scale) if spec.embed_scale_rounded else spec.embed_scale
        names = (LOOKED_UP, "input_made")
        inputs = [self._matrix(part) if spec.layer_inputs else MatrixFields() for part in names]
        frequencies = [self._keep(rope.inverse_frequencies(head_dim)) for rope, head_dim in ropes]
        magnitudes = [self._keep(rope.magnitudes(head_dim)) for rope, head_dim in ropes]
        self._keep_alive(layers)
        self._library = native.library()
        model = ModelFields(
            spec.layers, spec.hidden_size, spec.heads, spec.blocks_per_row, self._inner(), spec.vocab_size,
            spec.layer_inputs, spec.gelu, spec.norm_centred, spec.parallel, spec.wide_qk_norm,
            spec.norm_eps, spec.attention_scale, scale, spec.residual_scale, spec.logit_scale,
            spec.logit_softcap or 0.0, spec.attention_softcap or 0.0, self._rounded(spec.layer_inputs**0.5),
            spec.hidden_size**-0.5, (ctypes.c_void_p * ROPES)(*frequencies),
            (ctypes.c_void_p * ROPES)(*magnitudes), self._matrix("embed"),
            self._matrix("embed" if spec.tied_embeddings else "head"), *inputs, self._norm("norm"),
            self._norm("input_norm") if spec.layer_inputs else None, layers,
            self._lows(setup.lora), max((part.a.shape[0] for part in setup.lora), default=0),
            self._shape(setup.block_bytes),
        )  # fmt: skip
        self._step = self._library.open(ctypes.byref(model))

    def __del__(self) -> None:
        if step := getattr(self, "_step", None):
            self._library.close(step)

    def use(self, pool: NativePool) -> None:
        """From now on K and V lie there."""
        self._pool = pool
        self._library.pool(self._step, pool.pointer)

    def run(self, batch: BatchFields) -> None:
        """Raises nothing: what could go wrong has been checked. With fewer threads than wanted, and one
        warning, where the system gives no more."""
        had = self._library.run(self._step, ctypes.byref(batch), self.threads)
        if had < self.threads and not self._short:
            self._short = True
            _log.warning(
                "%d of %d threads: the user's or the control group's limit of threads allows no more",
                had,
                self.threads,
            )

    def logits(self, hidden: Tensor) -> Tensor:
        """[m, hidden], any rows of what ``run`` left -> float32 [m, vocab]."""
        hidden = hidden.contiguous()
        out = torch.empty(hidden.shape[0], self._spec.vocab_size)
        if len(hidden):
            self._library.logits(self._step, hidden.data_ptr(), len(hidden), out.data_ptr(), self.threads)
        return out

    # ---- parts --------------------------------------------------------------------------------------

    def _rounded(self, scale: float) -> float:
        """To the type of the model."""
        return float(torch.tensor(scale, dtype=self._dtype))

    def _turning(self, layer: int) -> tuple[Rope, int]:
        """What turns the heads of a layer, and how wide they are."""
        return self._spec.rope_of(layer), self._spec.rows_of(layer).head_dim

    def _layer(self, i: int, ropes: Items[tuple[Rope, int]]) -> LayerFields:
        name, spec, made = f"layers.{i}.", self._spec, LayerFields()
        made.scalar = float(self._vector(name + "scalar")[0]) if spec.layer_scaled else 1.0
        for place, _ in spec.norms.placed():
            setattr(made, place, self._norm(name + place))
        for place, norm in self._rare_norms(i).items():
            setattr(made, place, norm)
        if spec.layer_inputs:
            made.input_gate = self._matrix(name + "input_gate")
            made.input_out = self._matrix(name + "input_out")
        if (delta := spec.delta_of(i)) and self._states is not None:
            made.o = self._matrix(name + "out")
            made.linear = ctypes.pointer(self._linear(name, delta, self._states.head(i)))
        else:
            made.window, made.rope = spec.windows[i] or 0, ropes.index(self._turning(i))
            self._attention(name, spec.rows_of(i), made)
        if (experts := spec.experts_of(i)) is not None:
            made.mixture = ctypes.pointer(self._mixture(name, experts))
            if not (experts.shared or experts.beside):
                return made
            if experts.shared:
                made.shared = self._matrix(name + SHARED_GATE)
                name += "shared."
        made.inner = spec.inner_of(i)
        made.gate, made.up = (self._matrix(part) for part in part_names(name + "gate_up", 2))
        made.down = self._matrix(name + "down")
        return made

    def _attention(self, name: str, rows: LayerRows, made: LayerFields) -> None:
        spec = self._spec
        parts = part_names(name + "qkv", 3 if rows.own else 1)
        for place, part in zip("qkv", parts, strict=False):
            setattr(made, place, self._matrix(part))
        made.o = self._matrix(name + "o")
        made.head_dim, made.kv_heads, made.own = rows.head_dim, rows.kv_heads, rows.own
        made.first, made.per_head = rows.first, rows.width
        if spec.output_gate:
            made.output_gate = self._matrix(name + "o_gate")
        if spec.qkv_bias:
            sizes = (made.q.rows, made.k.rows, made.v.rows)
            made.q_bias, made.k_bias, made.v_bias = self._biases(name + "qkv.bias", sizes)
        if spec.o_bias:
            made.o_bias = self._biases(name + "o.bias", (made.o.rows,))[0]
        if spec.qk_norm or spec.wide_qk_norm:
            for part in "qk"[: 1 + rows.own]:
                setattr(made, f"{part}_norm", self._norm(f"{name}{part}_norm"))
        if spec.value_norm and rows.own:
            made.v_norm = self._keep(np.ones(rows.head_dim, dtype=np.float32))
        if spec.sinks:
            made.sinks = self._keep(self._vector(name + "sinks"))

    def _linear(self, name: str, delta: DeltaNet, first: int) -> LinearFields:
        """Of a layer whose state begins at block ``first``."""
        *qkv, z = (self._matrix(part) for part in part_names(name + "qkvz", 4 if delta.fused else 2))
        b, a = (self._matrix(part) for part in part_names(f"{name}{BETA}", 2))
        conv = np.zeros((delta.kernel, -(-delta.channels // _LANES) * _LANES), dtype=np.float32)
        conv[:, : delta.channels] = self._vector(name + "conv").reshape(delta.channels, delta.kernel).T
        found = LinearFields(
            *qkv, *[MatrixFields()] * (3 - len(qkv)), z, b, a,
            self._keep(conv), self._keep(-np.exp(self._vector(name + "a_log"))),
            self._keep(self._vector(name + "dt_bias")), self._keep(self._vector(name + "state_norm")), first,
        )  # fmt: skip
        self._keep_alive(found)
        return found

    def _shape(self, block_bytes: int) -> LinearShape:
        delta, states, spec = self._spec.delta, self._states, self._spec
        if delta is None or states is None:
            return LinearShape()
        return LinearShape(
            delta.key_heads, delta.value_heads, delta.key_dim, delta.value_dim, delta.kernel,
            state_rows(spec, block_bytes), spec.blocks_per_row, states.lines, states.head_blocks,
        )  # fmt: skip

    def _rare_norms(self, layer: int) -> dict[str, int]:
        """Of LAYER_NORMS those that there are. What the router reads is divided by the root of its size."""
        name, experts = f"layers.{layer}.", self._spec.experts_of(layer)
        found: dict[str, int] = {}
        if self._spec.layer_inputs:
            found["after_input"] = self._norm(name + "after_input")
        if experts is not None and experts.beside:
            parts = ("before_experts", "after_experts", "after_dense")
            found |= {part: self._norm(name + part) for part in parts}
            read = self._vector(name + "router_norm") * self._spec.hidden_size**-0.5
            found["router_norm"] = self._keep(read)
        return found

    def _mixture(self, name: str, experts: Experts) -> MixtureFields:
        count = experts.count
        gate_up = [self._matrix(part) for part in part_names(f"{name}experts.gate_up", 2 * count)]
        down = [self._matrix(part) for part in part_names(f"{name}experts.down", count)]
        each = [(MatrixFields * count)(*some) for some in (gate_up[::2], gate_up[1::2], down)]
        biases: list[int | None] = [None] * 4
        if experts.biased:
            rows = experts.inner, self._spec.hidden_size
            biases = [
                *self._biases(f"{name}{ROUTER}.bias", (count,)),
                *self._stacked_biases(f"{name}experts.gate_up.bias", count, 2, rows[0]),
                *self._stacked_biases(f"{name}experts.down.bias", count, 1, rows[1]),
            ]
        found = MixtureFields(
            count, experts.chosen, experts.inner, int(experts.normalised), int(experts.gelu), experts.alpha,
            experts.limit, self._matrix(f"{name}{ROUTER}"), *each, *biases,
            self._keep(self._vector(f"{name}router_scale")) if experts.scaled else None,
        )  # fmt: skip
        self._keep_alive((found, each))
        return found

    def _stacked_biases(self, name: str, experts: int, parts: int, rows: int) -> list[int]:
        """Of each part [experts, rows], each expert's padded to whole registers."""
        whole = np.zeros((parts, experts, -(-rows // _LANES) * _LANES), dtype=np.float32)
        whole[:, :, :rows] = self._vector(name).reshape(experts, parts, rows).transpose(1, 0, 2)
        return [self._keep(one) for one in whole]

    def _inner(self) -> int:
        """The widest of what every token goes through, 0 where that is nothing."""
        spec, found = self._spec, [0]
        for layer in range(spec.layers):
            experts = spec.experts_of(layer)
            found.append(spec.inner_of(layer) if spec.dense(layer) else experts.shared if experts else 0)
        return max(found)

    def _lows(self, told: list[LoraPart]) -> "ctypes.Array[LayerLows] | None":
        """[adapters, layers]: what each adapter adds, where it adds something."""
        if not told:
            return None
        count = max(part.adapter for part in told) * self._spec.layers
        lows = (LayerLows * count)()
        for part in told:
            _, layer, matrix = part.matrix.split(".")
            at = lows[(part.adapter - 1) * self._spec.layers + int(layer)]
            low = LowFields(self._lies(part.a), self._lies(part.b), part.scale)
            setattr(at, _PARTS[matrix][part.part], low)
        self._keep_alive(lows)
        return lows

    def _matrix(self, name: str) -> MatrixFields:
        return self._lies(self._entries[name])

    def _lies(self, entry: TensorEntry) -> MatrixFields:
        rows, columns = entry.shape
        return MatrixFields(self._weights.data_ptr() + entry.offset, rows, columns, FORMATS.index(entry.form))

    def _norm(self, name: str) -> int:
        return self._keep(self._vector(name) + np.float32(self._spec.norm_offset))

    def _biases(self, name: str, parts: Items[int]) -> list[int]:
        """Each padded to whole registers."""
        whole, found, start = self._vector(name), [], 0
        for size in parts:
            one = np.zeros(-(-size // _LANES) * _LANES, dtype=np.float32)
            one[:size] = whole[start : start + size]
            found.append(self._keep(one))
            start += size
        return found

    def _vector(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return self._views.tensor(name).float().numpy()

    def _keep(self, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
        """Its address; it lives as long as the model."""
        array = np.ascontiguousarray(array, dtype=np.float32)
        self._keep_alive(array)
        return array.ctypes.data

    def _keep_alive(self, held: object) -> None:
        self._kept.append(held)
