"""One zygote for all tests that do not end it."""

from collections.abc import Iterator

import pytest

from muxd.fleet.zygote import Zygote


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    zygote.start()
    yield zygote
    zygote.close()
