"""For folders of tests that run in Triton's interpreter, which must be chosen before kernels are imported."""

from collections.abc import Mapping

import numpy as np


def interpreting(environ: Mapping[str, str]) -> list[str]:
    """Where the interpreter was chosen, make it compute as a device; else names of what is not collected."""
    if environ.get("TRITON_INTERPRET") != "1":
        return ["test_*"]
    from support import interpreter_floats

    interpreter_floats.install()
    np.seterr(
        all="ignore"
    )  # numpy plays the device, where an exponential that overflows is infinite and silent
    return []
