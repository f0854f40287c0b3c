"""How fast the host is, whatever else it does."""

import time

from muxd.device import host_speed
from muxd.device.cpu import available_cores


def test_one_thread_measures_and_waits_for_no_other() -> None:
    """Threads that wait for each other took forty times as long where others wanted the cores."""
    before = time.process_time(), time.thread_time()
    found = host_speed.flops()
    spent, own = time.process_time() - before[0], time.thread_time() - before[1]
    assert spent <= own * 1.2 + 0.005
    assert found >= available_cores() * 2 * host_speed._MANY * host_speed._SIDE**3 / own  # the fastest run's
    assert host_speed.bandwidth() > 0
