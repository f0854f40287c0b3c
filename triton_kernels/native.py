"""The CPU's own step: C++ in ``native/``, compiled once for this CPU by the compiler that is there, loaded by
ctypes. No torch and no OpenMP: threads are the library's own, and a call lets Python's other threads go on.

The daemon packs weights with it (``muxd.models.packing``), workers compute with it.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muxd.config import home
from muxd.device.cpu import flags
from muxd.errors import MuxdError

Bytes = NDArray[np.uint8]

_log = logging.getLogger("muxd.kernels")

SOURCE = Path(__file__).with_name("native")
# As ``Format`` in formats.h counts them.
FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k", "mxfp4")
KEPT = ("float32", "float16", "bfloat16", "fp8")  # ``Kept`` in attention.h: how K and V lie in the pool
_FLOATS = FORMATS[:3]
_LANES, _GROUP = 16, 32  # rows of a block, and what its columns are padded to: formats.h
LEAST = frozenset({"avx2", "fma", "f16c"})
_OPTIONS = ("-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi", "-w")
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 300.0


ROPES = 3  # that the layers of a model may turn by
# Of a layer's norms those that few models have.
LAYER_NORMS = ("after_input", "router_norm", "before_experts", "after_experts", "after_dense")


class NativeMissing(MuxdError):
    """There is no native step on this host; the message is a sentence that says why and what to do."""

    code = "native_step_missing"


class MatrixFields(ctypes.Structure):
    _fields_ = (("w", c_void_p), ("rows", c_int64), ("columns", c_int64), ("format", c_int32))


class MixtureFields(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("count", "chosen", "inner", "normalised", "gelu")),
        *((name, c_float) for name in ("alpha", "limit")),
        ("router", MatrixFields),
        *((name, ctypes.POINTER(MatrixFields)) for name in ("gate", "up", "down")),
        *((name, c_void_p) for name in ("router_bias", "gate_bias", "up_bias", "down_bias", "scale")),
    )


class LinearShape(ctypes.Structure):
    """Of the layers that have a state; all zero where there are none."""

    _fields_ = tuple(
        (name, c_int32)
        for name in (
            "k_heads", "v_heads", "k_dim", "v_dim", "kernel", "rows", "per_row", "lines", "head_blocks"
        )
    )  # fmt: skip


class LinearFields(ctypes.Structure):
    _fields_ = (
        *((name, MatrixFields) for name in ("q", "k", "v", "z", "b", "a")),
        *((name, c_void_p) for name in ("conv", "rate", "bias", "norm")),
        ("first", c_int32),
    )


class LayerFields(ctypes.Structure):
    _fields_ = (
        *((name, MatrixFields) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, MatrixFields) for name in ("input_gate", "input_out")),
        *((name, c_void_p) for name in ("before_attention", "after_attention", "before_mlp", "after_mlp")),
        *((name, c_void_p) for name in LAYER_NORMS),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "v_norm", "sinks")),
        *((name, c_void_p) for name in ("q_bias", "k_bias", "v_bias", "o_bias")),
        *((name, c_int32) for name in ("window", "rope", "head_dim", "kv_heads")),
        *((name, c_int32) for name in ("first", "per_head", "own", "inner")),
        ("scalar", c_float),
        ("mixture", ctypes.POINTER(MixtureFields)),
        ("linear", ctypes.POINTER(LinearFields)),
        ("output_gate", MatrixFields),
        ("shared", MatrixFields),
    )


class LowFields(ctypes.Structure):
    _fields_ = (("a", MatrixFields), ("b", MatrixFields), ("scale", c_float))


class LayerLows(ctypes.Structure):
    """In the order of ``Part`` in model.h."""

    _fields_ = tuple((name, LowFields) for name in ("q", "k", "v", "o", "gate", "up", "down"))


class ModelFields(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "heads", "row_blocks", "inner", "vocab", "input")),
        *((name, c_int32) for name in ("gelu", "centred", "parallel", "wide_qk_norm")),
        *((name, c_float) for name in ("eps", "scale", "embed_scale", "residual_scale", "logit_scale")),
        *((name, c_float) for name in ("softcap", "attention_softcap", "table_scale", "made_scale")),
        ("frequencies", c_void_p * ROPES),
        ("magnitudes", c_void_p * ROPES),
        *((name, MatrixFields) for name in ("embed", "head", "input_table", "input_made")),
        *((name, c_void_p) for name in ("norm", "input_norm")),
        ("layer", ctypes.POINTER(LayerFields)),
        ("lora", ctypes.POINTER(LayerLows)),
        ("rank", c_int32),
        ("linear", LinearShape),
    )


class BatchFields(ctypes.Structure):
    _fields_ = (
        *((name, c_int32) for name in ("spans", "tokens", "picks")),
        *((name, c_void_p) for name in ("start", "count", "rows", "first_row", "token", "pick")),
        *((name, c_void_p) for name in ("hidden", "logits", "best", "choice", "adapter", "state")),
    )


class PoolFields(ctypes.Structure):
    _fields_ = (
        ("base", c_void_p),
        ("block_bytes", c_int64),
        ("table", c_void_p),
        ("tokens", c_int32),
        ("kept", c_int32),
    )


class Library:
    """The compiled functions of step.cpp at ``path``."""

    def __init__(self, path: Path):
        self.path = path
        loaded = ctypes.CDLL(str(path))
        for name, result, arguments in (
            ("muxd_open", c_void_p, (ctypes.POINTER(ModelFields),)),
            ("muxd_close", None, (c_void_p,)),
            ("muxd_pool", None, (c_void_p, ctypes.POINTER(PoolFields))),
            ("muxd_run", c_int32, (c_void_p, ctypes.POINTER(BatchFields), c_int32)),
            ("muxd_logits", None, (c_void_p, c_void_p, c_int32, c_void_p, c_int32)),
            ("muxd_block_bytes", c_int64, (c_int32, c_int64)),
            ("muxd_file_row_bytes", c_int64, (c_int32, c_int64)),
            ("muxd_pack", None, (c_void_p, c_int32, c_int64, c_int64, c_int64, c_void_p, c_int32)),
            ("muxd_unpack", None, (c_void_p, c_int32, c_int64, c_int64, c_int64, c_void_p)),
        ):
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        self.open, self.close, self.pool = loaded.muxd_open, loaded.muxd_close, loaded.muxd_pool
        self.run, self.logits = loaded.muxd_run, loaded.muxd_logits
        self._loaded = loaded

    def block_bytes(self, form: str, columns: int) -> int:
        """Of sixteen rows, packed."""
        return int(self._loaded.muxd_block_bytes(FORMATS.index(form), columns))

    def matrix_bytes(self, form: str, rows: int, columns: int) -> int:
        """Of a whole matrix, packed."""
        return -(-rows // 16) * self.block_bytes(form, columns)

    def row_bytes(self, form: str, columns: int) -> int:
        """Of one row as files have it."""
        return int(self._loaded.muxd_file_row_bytes(FORMATS.index(form), columns))

    def pack(self, into: Bytes, form: str, columns: int, rows: Bytes, kind: str) -> None:
        """``rows``, one after another as a file of ``kind`` has them, become row blocks from the beginning of
        ``into`` on."""
        count = len(rows) // self.row_bytes(kind, columns)
        if count % _LANES or columns % _GROUP or form not in _FLOATS:
            into[:] = 0  # what pads rows and columns
        self._loaded.muxd_pack(
            into.ctypes.data, FORMATS.index(form), 0, count, columns, rows.ctypes.data, FORMATS.index(kind)
        )

    def unpack(self, packed: Bytes, form: str, rows: int, columns: int) -> NDArray[np.float32]:
        """[rows, columns] of a packed matrix."""
        out = np.empty((rows, columns), dtype=np.float32)
        self._loaded.muxd_unpack(packed.ctypes.data, FORMATS.index(form), 0, rows, columns, out.ctypes.data)
        return out


@cache
def missing() -> str:
    """Why this host has no native step, as a sentence; "" where it has one. Compiles it where that is not
    done, which takes half a minute."""
    try:
        library()
    except NativeMissing as error:
        return error.message
    return ""


@cache
def library(cpu: str = "native") -> Library:
    """Compiled for this CPU, or for ``cpu`` as the compiler names it. Raises NativeMissing."""
    has = flags()
    if platform.machine() != "x86_64" or not has >= LEAST:
        raise NativeMissing(
            f"the CPU ({platform.machine()}) lacks {', '.join(sorted(LEAST - has)) or 'x86-64'}, which the "
            "native step is written for; models are computed by torch"
        )
    compiler = found_compiler()
    if compiler is None:
        raise NativeMissing(
            f"no C++ compiler ({', '.join(_COMPILERS)}) is on the PATH, so models are computed by torch, "
            "several times slower; install one, such as g++ 10 or newer, and start muxd again"
        )
    path = home() / "native" / f"step-{_key(compiler, has, cpu)}.so"
    try:
        if not path.exists():
            _compile(compiler, cpu, path)
        return Library(path)
    except OSError as error:
        raise NativeMissing(
            f"the native step cannot be kept or loaded in {path.parent}: {error.strerror or error}; "
            "MUXD_HOME names the folder, and until then models are computed by torch"
        ) from None


def found_compiler() -> str | None:
    """The first C++ compiler on the PATH."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def compiling(compiler: str, cpu: str, source: Path, made: Path) -> list[str]:
    """The command that compiles a library of ``source`` for ``cpu``."""
    return [compiler, *_OPTIONS, f"-march={cpu}", "-o", str(made), str(source)]


def _key(compiler: str, has: frozenset[str], cpu: str) -> str:
    """Of what the library depends on: sources, options, compiler, and what the CPU can."""
    digest = hashlib.sha256()
    for source in sorted(SOURCE.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    told = os.stat(os.path.realpath(compiler))
    digest.update(repr((_OPTIONS, cpu, sorted(has), os.path.realpath(compiler), told.st_size)).encode())
    return digest.hexdigest()[:16]


def _compile(compiler: str, cpu: str, path: Path) -> None:
    """Whole or not at all, once however many processes ask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        _log.info("%s compiles the native step for this CPU: half a minute, once", compiler)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as scratch:
            made = Path(scratch) / "step.so"
            command = compiling(compiler, cpu, SOURCE / "step.cpp", made)
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, cwd=scratch)
            except subprocess.TimeoutExpired:
                raise NativeMissing(
                    f"{compiler} did not compile the native step in {_SECONDS:.0f} s; models are computed by "
                    "torch"
                ) from None
            if done.returncode != 0:
                said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
                first = next((line for line in said if "error" in line.lower()), said[0])
                raise NativeMissing(
                    f"{compiler} cannot compile the native step ({first[:200]}); g++ 10 or clang 12 and "
                    "newer can, and until then models are computed by torch"
                )
            os.replace(made, path)
