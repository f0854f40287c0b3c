"""What `muxd profile` does: asks a process of its own for the time of many batches, and writes them down.

The process computes with the worker's Runner (``python -m muxd.worker.profile``); this one loads no torch.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Self, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from muxd import __version__
from muxd.cost import probe
from muxd.cost.analytic import reading_of
from muxd.cost.fit import fitted
from muxd.cost.profile import FORMAT, Beside, Grid, ModelProfile, Profile, load
from muxd.cost.profile import Device as Measured
from muxd.cost.shapes import ModelShape, of_spec
from muxd.cost.table import monotone
from muxd.device.base import Device, is_gpu
from muxd.device.cuda import Cuda
from muxd.errors import ConfigError, ModelFolderError
from muxd.messages import Dtype, KvDtype, Sampling, StepName, WeightsName
from muxd.models.spec import read_spec

_POOL_BYTES = 1 << 30  # on the CPU; a GPU takes what the largest probe needs, at most half its memory
_TENTHS = tuple(range(10, 101, 10))
_PAIR_BATCH, _PAIR_CONTEXT = 4, 128
_SPLIT, _SPLIT_TOKENS = 8, 256  # a batch of eight prompts against one prompt of as many tokens
_SUSPECT = 1.15  # times what a larger batch took
_STEPS = 16  # room a decode probe needs for its tokens
_OTHERS = 5  # probes beside the grids
GREEDY = MappingProxyType({"temperature": 0.0})

Step = Callable[[], None]
T = TypeVar("T")


class Plan(Struct, frozen=True):
    """What to measure, and for how many seconds at least."""

    prefill_tokens: tuple[int, ...] = (1, 16, 64, 128, 256, 512)
    prefill_contexts: tuple[int, ...] = (0, 256, 1024)
    prefill_seconds: float = 0.15
    decode_batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    decode_contexts: tuple[int, ...] = (32, 128, 512, 1024)
    decode_seconds: float = 0.3
    pair_seconds: float = 2.0  # of two batches side by side

    @property
    def probes(self) -> int:
        """How many a share needs."""
        prefills = len(self.prefill_tokens) * len(self.prefill_contexts)
        return prefills + len(self.decode_batches) * len(self.decode_contexts)


_PLAN = Plan()
# Batches are larger there, and a short one says nothing: it is the launches' time.
_GPU_PLAN = Plan(
    prefill_tokens=(1, 64, 256, 512, 1024, 2048),
    prefill_contexts=(0, 1024, 4096),
    decode_batches=(1, 2, 4, 8, 16, 32, 64, 128),
    decode_contexts=(128, 512, 2048),
)


def plan_for(device: Device) -> Plan:
    """What is worth measuring on a device of its kind."""
    return _GPU_PLAN if is_gpu(device) else _PLAN


class Prober:
    """The measuring process. A context manager, which raises ModelFolderError on entry when it cannot serve
    the folder; ``opened`` is known from then on."""

    opened: probe.Opened

    def __init__(
        self,
        folder: Path,
        dtype: Dtype,
        device: Device,
        pool_bytes: int = _POOL_BYTES,
        *,
        kv_dtype: KvDtype = "auto",
        weights: WeightsName = "file",
        step: StepName = "auto",
        sampling: Mapping[str, float] = GREEDY,
        cap: int = 0,
        random: bool = False,
    ):
        """``cap``: percent it may use for life, where the device caps; ``random``: no weight files;
        ``weights``, ``step``, ``sampling``: as a model's are configured."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "muxd.worker.profile"],
            env={**os.environ, **device.worker_env(cap)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._setup = probe.Setup(
            str(folder.absolute()), dtype, 8192, pool_bytes, device.cores, device.name, random, kv_dtype,
            weights, step, sampling=_sampling(sampling),
        )  # fmt: skip

    def measure(self, asked: probe.Probe) -> float:
        """Median seconds of one batch."""
        self.send(asked)
        return self.answer()

    def answer(self) -> float:
        """Median seconds of what was sent before."""
        return median(self.receive(probe.Measured).seconds)

    def send(self, asked: probe.Probe | probe.Setup) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: ``receive`` says how
            self._process.stdin.write(probe.encode(asked) + b"\n")
            self._process.stdin.flush()

    def receive(self, kind: type[T]) -> T:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ModelFolderError(f"measuring ended with exit code {code}; its own words are above")
        return msgspec.json.decode(line, type=kind)

    def __enter__(self) -> Self:
        try:
            self.send(self._setup)
            self.opened = self.receive(probe.Opened)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()


def _sampling(given: Mapping[str, float]) -> Sampling:
    """In the words of ``[model.sampling]``, which has -1 for no top-k, too."""
    own = {**given, "top_k": max(0, int(given.get("top_k", 0)))}
    return msgspec.structs.replace(Sampling(), **own)


class Probers:
    """A measuring process for every share: one for all, or, where a share is a cap for life, one after
    another. A context manager."""

    def __init__(self, device: Device, make: Callable[[int], Prober]):
        """``make`` starts one with a cap in percent; 0: none."""
        self._make, self._device = make, device
        self._cap, self._prober = 0, make(0)

    def at(self, share: int) -> Prober:
        """For probes of this share. The one before may end here."""
        cap = share if self._device.caps else 0
        if cap != self._cap:
            self._prober.__exit__()
            self._cap, self._prober = cap, self._make(cap)
            self._prober.__enter__()
        return self._prober

    def __enter__(self) -> Self:
        self._prober.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._prober.__exit__()


def shares(device: Device) -> tuple[int, ...]:
    """Percent to measure at: what the device has, or tenths where it has every percent."""
    return device.rungs if len(device.rungs) <= len(_TENTHS) else _TENTHS


def cells(device: Device, plan: Plan | None = None) -> int:
    """How many probes `measure` makes: for the progress bar."""
    return len(shares(device)) * (plan or plan_for(device)).probes + _OTHERS


def measure(
    folder: Path,
    dtype: Dtype,
    step: Step,
    *,
    device: Device,
    plan: Plan | None = None,
    kv_dtype: KvDtype = "auto",
    weights: WeightsName = "file",
    cpu_step: StepName = "auto",
    sampling: Mapping[str, float] = GREEDY,
    random: bool = False,
) -> ModelProfile:
    """Everything about one model on ``device`` as it is configured; ``step`` is called after every probe.
    Raises ModelFolderError, also for weights that ``device`` cannot have."""
    plan = plan or plan_for(device)
    spec = read_spec(folder)  # what is wrong with it is said here, in one sentence
    if spec.headless:
        raise ModelFolderError(f"{folder} only embeds texts: a profile is of models that generate")
    size = of_spec(spec, kv_dtype)
    pool = _pool_bytes(device, size, dtype, plan)

    def make(cap: int, nbytes: int = pool) -> Prober:
        return Prober(
            folder,
            dtype,
            device,
            nbytes,
            kv_dtype=kv_dtype,
            weights=weights,
            step=cpu_step,
            sampling=sampling,
            cap=cap,
            random=random,
        )

    with Probers(device, make) as probers:
        opened, tokens, batches = probers.at(100).opened, plan.prefill_tokens, plan.decode_batches
        before = _fitting(opened, plan.prefill_contexts, 1, max(tokens), pool)
        held = _fitting(opened, plan.decode_contexts, max(batches), _STEPS, pool)
        prefill = _grid(probers, device, step, tokens, before, _prefill(plan))
        decode = _grid(probers, device, step, batches, held, _decode(plan))
        chunk_seconds = _chunk_seconds(probers.at(100), step)
        beside = None
        if len(device.rungs) > 1:  # on one core nobody ever runs beside another
            share = shares(device)[0]
            with make(_cap(device, share), pool // 4) as other:
                beside = _beside(probers.at(share), other, device, step, plan)
    size = msgspec.structs.replace(size, packed=opened.packed)
    reading = reading_of(size, 1, dtype)
    shape = msgspec.structs.replace(size.on(1, dtype), max_positions=opened.max_positions)
    return ModelProfile(
        shape=shape,
        prefill=prefill,
        decode=decode,
        chunk_seconds=chunk_seconds,
        weights=weights,
        step="auto" if is_gpu(device) else "native" if opened.packed else "torch",
        sampling=dict(sampling),
        weight_bytes=round(reading.weights),
        sparse=reading.sparse,
        beside=beside,
        folder=folder.absolute().name,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"muxd": __version__, "torch": opened.torch, "python": sys.version.split()[0]},
    )


Ask = Callable[[int, int, int], probe.Probe]  # (tokens or sequences, context, share)


def _prefill(plan: Plan) -> Ask:
    return lambda rows, context, share: probe.Prefill(rows, context, share, seconds=plan.prefill_seconds)


def _decode(plan: Plan) -> Ask:
    return lambda rows, context, share: probe.Decode(rows, context, share, seconds=plan.decode_seconds)


def _cap(device: Device, share: int) -> int:
    return share if device.caps else 0


def _parts(device: Device, share: int, *, after: int = 0) -> int:
    """The mask of a share of a device in parts, ``after`` percent others have; 0: none is needed."""
    if not device.parts or share == 100:
        return 0
    count, first = share * device.parts // 100, after * device.parts // 100
    return (1 << count) - 1 << first


def _pool_bytes(device: Device, size: ModelShape, dtype: Dtype, plan: Plan) -> int:
    """For the largest probe."""
    sequences = max(plan.decode_batches)
    if not isinstance(device, Cuda):
        return _POOL_BYTES + sequences * size.state_bytes * 5 // 4
    each = size.kv_bytes(1, dtype) * (max(plan.decode_contexts) + 4 * _STEPS) + size.state_bytes
    most = device.driver.total_memory(device.index) // 2
    return min(max(_POOL_BYTES, sequences * each * 5 // 4), most)


def _fitting(
    opened: probe.Opened, contexts: tuple[int, ...], sequences: int, more: int, pool_bytes: int
) -> tuple[int, ...]:
    """Contexts that the model can have and that ``sequences`` find room for, with ``more`` tokens each."""
    room = (
        min(opened.max_positions, (opened.rows // sequences - opened.state_rows) * opened.row_tokens) - more
    )
    if contexts[0] > room:
        raise ConfigError(
            f"{sequences} sequences of {contexts[0] + more} tokens need more than {pool_bytes} bytes"
        )
    return tuple(context for context in contexts if context <= room)


def _grid(
    probers: Probers,
    device: Device,
    step: Step,
    rows: tuple[int, ...],
    contexts: tuple[int, ...],
    ask: Ask,
) -> Grid:
    """Every crossing at every share of this device."""
    rungs = shares(device)
    seconds = np.zeros((len(rungs), len(rows), len(contexts)))

    def measured(i: int, j: int, k: int) -> float:
        asked = msgspec.structs.replace(ask(rows[j], contexts[k], rungs[i]), parts=_parts(device, rungs[i]))
        return probers.at(rungs[i]).measure(asked)

    for (i, j, k), _ in np.ndenumerate(seconds):
        seconds[i, j, k] = measured(i, j, k)
        step()
    # Somebody else used the machine where a smaller batch took clearly longer: once more, and the better.
    for i, j, k in np.argwhere(seconds > _SUSPECT * monotone(seconds)).tolist():
        seconds[i, j, k] = min(seconds[i, j, k], measured(i, j, k))
    return Grid(list(rungs), list(rows), list(contexts), seconds.tolist())


def _chunk_seconds(prober: Prober, step: Step) -> float:
    """What a further prompt in a batch costs beside its tokens."""
    one = prober.measure(probe.Prefill(_SPLIT_TOKENS, 0, 100, least=5))
    step()
    many = prober.measure(probe.Prefill(_SPLIT_TOKENS, 0, 100, chunks=_SPLIT, least=5))
    step()
    return max(0.0, (many - one) / (_SPLIT - 1))


def _beside(prober: Prober, other: Prober, device: Device, step: Step, plan: Plan) -> Beside:
    """Two processes at the smallest share, side by side and alone; the second serves the same folder."""
    share, least = shares(device)[0], 3
    decode = probe.Decode(_PAIR_BATCH, _PAIR_CONTEXT, share, least, plan.pair_seconds, _parts(device, share))
    prefill = probe.Prefill(_SPLIT_TOKENS, 0, share, 1, least, plan.pair_seconds, _parts(device, share))
    pairs: dict[str, tuple[probe.Probe, probe.Probe]] = {
        "decode_by_decode": (decode, decode),
        "decode_by_prefill": (decode, prefill),
        "prefill_by_decode": (prefill, decode),
    }
    found = {"decode": prober.measure(decode), "prefill": prober.measure(prefill)}
    for asked in (decode, prefill):
        other.measure(asked)  # a new process is slow at first
    for name, (asked, beside) in pairs.items():
        other.send(msgspec.structs.replace(beside, parts=_parts(device, share, after=share)))
        found[name] = prober.measure(asked)
        other.answer()
        step()
    return Beside(share, _PAIR_BATCH, _PAIR_CONTEXT, _SPLIT_TOKENS, **found)


def processor(device: Device) -> str:
    """The processor's name, for the file's provenance."""
    if isinstance(device, Cuda):
        return device.driver.device_name(device.index)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown")


def merged(path: Path, name: str, model: ModelProfile, on: Device) -> Profile:
    """The file with this model in it. Raises ConfigError when its other models are from another device."""
    device = Measured(
        on.name, on.cores, list(on.rungs), processor(on), gpu=isinstance(on, Cuda), caps=on.caps
    )  # fmt: skip
    if not path.exists():
        return fitted(Profile(FORMAT, device, {name: model}))
    old = load(path)
    if msgspec.structs.replace(old.device, memory=None) != device:
        raise ConfigError(
            f"{path} was measured on {old.device.name} ({old.device.processor}): choose another --out"
        )
    return fitted(msgspec.structs.replace(old, models={**old.models, name: model}))
