"""The list of checks, in the order they are run, and what it means when one cannot even answer.

``module:function`` names the probe; it runs in a process of its own and may take torch with it. Nothing of it
is imported here.
"""

from typing import Literal

from msgspec import Struct

Wants = Literal["host", "gpu", "torch on gpu"]

SCRATCH = "MUXD_DOCTOR_SCRATCH"  # the environment names a folder that goes when the doctor is done

_AFTER: dict[Wants, tuple[str, ...]] = {"host": (), "gpu": ("driver",), "torch on gpu": ("driver", "torch")}


class Check(Struct, frozen=True):
    """``seconds``: after that the probe is killed. ``without``: what muxd has to do without then."""

    name: str
    probe: str
    wants: Wants
    seconds: float
    without: str
    needed: bool = False

    @property
    def after(self) -> tuple[str, ...]:
        """Checks that must have found nothing but ok before, or this one could tell nothing new."""
        return _AFTER[self.wants]


_SHARE, _SHEET = "workers could not map pool and weights", "costs are estimated from the data sheet"

CHECKS = (
    Check("cores", "host:cores", "host", 20, "muxd cannot tell how many threads it may use"),
    Check("memory", "host:memory", "host", 20, "muxd cannot tell how large pool.bytes may be"),
    Check("shared memory", "host:sharing", "host", 30, _SHARE, needed=True),
    Check("cpu weights", "host:weights", "host", 20, "shares are kept by threads alone"),
    Check("native step", "host:native_step", "host", 400, "models are computed by torch on the CPU"),
    Check("torch", "compute:torch_threads", "host", 120, "no model can be computed", needed=True),
    Check("driver", "gpu:driver", "gpu", 60, "no GPU can be used", needed=True),
    Check("gpu health", "gpu:health", "gpu", 30, "the GPU's temperature and errors are not shown"),
    Check("memory export", "gpu:export", "gpu", 120, _SHARE, needed=True),
    Check("exporter's death", "gpu:survival", "gpu", 120, "nobody knows what a crash of the daemon leaves"),
    Check("mps", "sharing:mps", "gpu", 180, "models take turns on the whole GPU"),
    Check("green contexts", "sharing:green", "gpu", 120, "workers keep the cap they were started with"),
    Check("gpu memory speed", "speed:memory", "gpu", 120, _SHEET),
    Check("matrix rate", "compute:matrix", "torch on gpu", 180, _SHEET),
    Check("decode kernel", "compute:decode", "torch on gpu", 300, "what fewer SMs cost decode is not known"),
)
