"""The host that the tests of tests/gpu run on."""

from dataclasses import dataclass

import pytest

from muxd.device.mps import Mps, MpsUnavailable


@dataclass
class Host:
    """``real``: there is a GPU behind it."""

    real: bool
    mps: Mps

    def start_mps(self) -> Mps:
        """Started, or the test is skipped because this host has none. Stopped by the fixture."""
        try:
            self.mps.start()
        except MpsUnavailable as error:
            pytest.skip(error.message)
        return self.mps
