"""A Hopper GPU that Triton believes in: it compiles for it, and what it would launch is told instead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

REGISTERS, SHARED = 65_536, 232_448  # of one SM of compute capability 9.0; shared in bytes, per program


class Launch(NamedTuple):
    """What a driver would be told: the function that runs, its grid, and all arguments with the constants."""

    name: str
    function: bytes
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


@contextmanager
def hopper(launched: Callable[[Launch], None] | None = None) -> Iterator[None]:
    before = driver._active
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device=0: 0,
            get_active_torch_device=lambda: torch.device("cpu"),
            launcher_cls=lambda source, metadata: _launcher(metadata.name, launched),
            utils=SimpleNamespace(
                get_device_properties=lambda device: {"max_shared_mem": SHARED},
                # Module, function, registers, spills, threads.
                load_binary=lambda name, binary, shared, device: (name, binary, 0, 0, 1024),
            ),
        )
    )
    try:
        yield
    finally:
        driver._active = before


def _nothing(*arguments: object) -> None:
    pass


def _launcher(name: str, launched: Callable[[Launch], None] | None) -> Callable[..., None]:
    if launched is None:
        return _nothing

    def launch(x: int, y: int, z: int, stream: int, function: bytes, *rest: Any) -> None:
        _packed, _metadata, _enter, _exit, *arguments = rest
        launched(Launch(name, function, (x, y, z), tuple(arguments)))

    return launch
