"""What the operator writes down: models.toml and "8xA100-80G". Reads files; decides nothing.

[[model]]
name = "chat"             # required, different for every model
size = "llama-3-8b"       # a shape of the catalogue (muxd.cost.shapes) ...
# path = "models/chat"    # ... or a model folder: exactly one of both
rate = 4.5                # requests a second; required unless a workload says it
prompt_tokens = 161       # means; the defaults are ShareGPT's
output_tokens = 337
dtype = "bfloat16"
kv_dtype = "auto"         # or "fp8", as in muxd.toml
weight = 1.0              # what one of its requests is worth against others'
ttft_slo = 2.0            # seconds; 0: no target
tpot_slo = 0.2
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from muxd.cost.peaks import PEAKS, Peak, recognised
from muxd.cost.shapes import known as known_shape
from muxd.cost.shapes import read_shape
from muxd.errors import ConfigError
from muxd.messages import Dtype, KvDtype
from muxd.placement.problem import Gpus, ModelLoad

_GB = 10**9


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[model]]``."""

    name: str
    size: str = ""
    path: str = ""
    rate: float = 0.0
    prompt_tokens: int = 161
    output_tokens: int = 337
    dtype: Dtype = "bfloat16"
    kv_dtype: KvDtype = "auto"
    weight: float = 1.0
    ttft_slo: float = 0.0
    tpot_slo: float = 0.0


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    model: list[Entry]


class Traffic(Struct, frozen=True):
    """What a workload says of one model."""

    rate: float
    prompt: int
    output: int


def read(path: Path) -> list[Entry]:
    """Raises ConfigError naming file and key."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), _File).model
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def loads(entries: list[Entry], where: Path, traffic: Mapping[str, Traffic] | None = None) -> list[ModelLoad]:
    """With shapes; ``traffic`` replaces rates and lengths. Paths start from the folder of ``where``.

    Raises ConfigError naming the key, ModelFolderError for a folder that cannot be read.
    """
    unknown = set(traffic or {}) - {entry.name for entry in entries}
    if unknown:
        raise ConfigError(f"{where}: the workload asks for {min(unknown)!r}, which is not there")
    return [_load(entry, where, (traffic or {}).get(entry.name)) for entry in entries]


def _load(entry: Entry, where: Path, traffic: Traffic | None) -> ModelLoad:
    key = f"{where}: model {entry.name!r}"
    if bool(entry.size) == bool(entry.path):
        raise ConfigError(f"{key}: give one of size (a known shape) and path (a model folder)")
    for name in ("ttft_slo", "tpot_slo"):
        if not 0 <= getattr(entry, name) < float("inf"):
            raise ConfigError(f"{key}: {name} must not be negative, and finite")
    rate = traffic.rate if traffic else entry.rate
    if not rate:
        raise ConfigError(f"{key}: rate is missing: write it, or give a workload that asks for the model")
    folder = where.parent.absolute() / Path(entry.path).expanduser() if entry.path else None
    shape = read_shape(folder) if folder else known_shape(entry.size)
    return ModelLoad(
        name=entry.name,
        cost=entry.size or str(folder),
        shape=msgspec.structs.replace(shape, kv_dtype=entry.kv_dtype),
        rate=rate,
        prompt=traffic.prompt if traffic else entry.prompt_tokens,
        output=traffic.output if traffic else entry.output_tokens,
        dtype=entry.dtype,
        weight=entry.weight,
        ttft_slo=entry.ttft_slo,
        tpot_slo=entry.tpot_slo,
        path=str(folder) if folder else "",
    )


def parse_gpus(text: str, hosts: int = 1, device: Peak | None = None) -> Gpus:
    """ "8xA100-80G": devices a host, their kind, their memory where the kind does not say it.

    ``device``: what the kind is, where it is not a known one.

    Raises ConfigError.
    """
    match = re.fullmatch(r"(\d+)x([A-Za-z][A-Za-z0-9 _-]*?)(?:-(\d+)GB?)?", text.strip())
    if not match or not int(match[1]) or hosts < 1:
        raise ConfigError(f'--gpus {text!r}: write a count, a kind and a memory, such as "8xA100-80G"')
    known = device or recognised(match[2])
    memory = int(match[3]) * _GB if match[3] else int(known.memory) if known else 0
    if not memory:
        raise ConfigError(
            f"--gpus {text!r}: how much memory? Write {match[1]}x{match[2]}-NG; known without: "
            f"{', '.join(PEAKS)}"
        )
    return Gpus(match[2], memory, int(match[1]), hosts)
