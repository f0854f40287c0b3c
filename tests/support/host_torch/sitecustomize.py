"""On PYTHONPATH of a process that uses the stand-in driver: torch takes its memory for the host's, as it is.

Tensors of the CPU lie over the mapped memory, so that everything between a worker's socket and its kernels
runs as on a GPU: mapping, row tables, paged steps, run-ahead, ends. The interpreter imports a module of this
name by itself; it acts when ``muxd.device.cuda_tensor`` is imported.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "muxd.device.cuda_tensor"


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def patched(module: ModuleType) -> None:
            execute(module)
            _over_host_memory(module)

        spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


def _over_host_memory(module: ModuleType) -> None:
    import torch

    make = module.bytes_at
    vars(module)["bytes_at"] = lambda address, nbytes, device: make(address, nbytes, None)
    for name in ("init", "set_device", "synchronize"):
        setattr(torch.cuda, name, lambda *_: None)


sys.meta_path.insert(0, _Finder())
