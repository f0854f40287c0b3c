"""A Runner with weights and a pool of its own, no daemon beside it: for processes that measure."""

from pathlib import Path

import numpy as np
import torch

from muxd.cost import probe
from muxd.device.base import HostWriter
from muxd.kernels import native
from muxd.messages import ITEM_BYTES, Dtype, NewRows, Setup, kv_item_bytes
from muxd.models.cut import Rank, cut_spec
from muxd.models.families.table import FAMILIES
from muxd.models.packing import packing_for
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.state_layout import state_rows
from muxd.models.weights import ALIGNMENT, WeightPlan, fill, layout, plan
from muxd.worker.mapped import DTYPES
from muxd.worker.runner import Runner

_PATTERN = 0x3C  # each byte of the pool: a small finite number in every type, and pages that are really there


class Alone:
    """``runner``, warmed up, over ``rows`` rows of ``row_tokens`` tokens; the first batch must say what is in
    ``new``. Raises ModelFolderError for a folder that cannot be served so."""

    def __init__(self, setup: probe.Setup):
        if setup.device != "cpu":
            torch.cuda.set_device(setup.device)
        folder = Path(setup.folder)
        whole = read_spec(folder)
        self.spec = cut_spec(whole, setup.ranks)
        item = kv_item_bytes(setup.dtype, setup.kv_dtype)
        self.row_tokens = self.spec.tokens_per_row(setup.block_bytes, item)
        self.plan, weights = _weights(folder, whole, setup)
        self.state_rows = state_rows(self.spec, setup.block_bytes)  # of a sequence
        per_row = self.spec.blocks_per_row
        self.rows = setup.pool_bytes // setup.block_bytes // per_row
        nbytes = self.rows * per_row * setup.block_bytes
        pool = torch.full((nbytes,), _PATTERN, dtype=torch.uint8, device=setup.device)
        told = Setup(
            worker="alone", model=folder.name, folder=setup.folder, dtype=setup.dtype, link="",
            device=setup.device, pool_bytes=pool.numel(), block_bytes=setup.block_bytes, max_rows=self.rows,
            weights_bytes=self.plan.bytes, tensors=self.plan.tensors, cores=setup.cores,
            max_context=self.spec.max_positions, kv_dtype=setup.kv_dtype, rank=setup.rank,
            ranks=setup.ranks, meeting=setup.meeting,
        )  # fmt: skip
        self.runner = Runner(told, pool, weights)
        self.runner.warm_up()
        blocks = (
            np.random.default_rng(0).permutation(self.rows * per_row).astype("<i4")
        )  # as scattered as live
        self.new = NewRows(np.arange(self.rows, dtype="<i4").tobytes(), blocks.tobytes())


def _weights(folder: Path, spec: ModelSpec, setup: probe.Setup) -> tuple[WeightPlan, torch.Tensor]:
    """The weights region on the device: from the folder's files, or random. Raises ModelFolderError."""
    step = setup.step if FAMILIES[spec.architecture].native else "torch"
    packing = packing_for(setup.weights, step, setup.dtype, gpu=setup.device != "cpu")
    if setup.random:
        made = layout(spec, setup.dtype, packing)
        return made, _random(made, setup.dtype, setup.device)
    made = plan(folder, spec, setup.dtype, packing=packing, rank=Rank(setup.rank, setup.ranks))
    weights = np.empty(made.bytes + ALIGNMENT, np.uint8)
    weights = weights[-weights.ctypes.data % ALIGNMENT :][: made.bytes]
    fill(made, HostWriter(weights))
    return made, torch.from_numpy(weights).to(setup.device)


def _random(made: WeightPlan, dtype: Dtype, device: str) -> torch.Tensor:
    """A region of small numbers."""
    count = -(-made.bytes // ITEM_BYTES[dtype])
    region = torch.empty(count, dtype=DTYPES[dtype], device=device).normal_(0, 0.02).view(torch.uint8)
    for entry in made.tensors:
        if entry.form:
            (rows, columns), library = entry.shape, native.library()
            numbers = torch.empty(rows * columns).normal_(0, 0.02).numpy().view(np.uint8)
            into = region.numpy()[entry.offset :][: library.matrix_bytes(entry.form, rows, columns)]
            library.pack(into, entry.form, columns, numbers, "f32")
    return region
