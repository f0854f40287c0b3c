"""Whether the daemon takes requests: it does until an operator drains it, or it stops."""

import asyncio
from typing import Literal

from muxd.errors import Draining

Taking = Literal["ok", "draining", "stopping"]


class Gate:
    """``stopping`` is for good; draining ends when the operator says so."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.draining = False

    @property
    def taking(self) -> Taking:
        return "stopping" if self.stopping.is_set() else "draining" if self.draining else "ok"

    def admit(self) -> None:
        """Raises Draining. What stops is refused by its unit, which knows the grace of what runs."""
        if self.draining:
            raise Draining("muxd is drained for maintenance and takes no new requests; `muxctl drain --end`")
