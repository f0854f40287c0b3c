"""What a soak takes for growth, and what for chance."""

import random

import numpy as np
from support.flatness import judge

MINUTES = 20 * 60
TIMES = np.arange(0.0, MINUTES, 5.0)
BOUND = 3.0


def noisy(values: np.ndarray, seed: int, spread: float) -> list[float]:
    draw = random.Random(seed)
    return [float(value) + draw.gauss(0, spread) for value in values]


def test_what_is_filled_during_the_warm_up_is_flat() -> None:
    filled = np.minimum(TIMES / 200, 1.0) * 40 + 100
    found = judge("rss", list(TIMES), filled.tolist(), BOUND)
    assert found.flat
    assert (round(found.growth, 6), found.least, found.most) == (0.0, 140.0, 140.0)


def test_a_leak_is_found_below_noise_that_is_larger() -> None:
    leak = 100 + 6.0 * TIMES / MINUTES  # 4.5 over what is judged
    found = judge("rss", list(TIMES), noisy(leak, 1, 2.0), BOUND)
    assert not found.flat
    assert 3.0 < found.growth < 6.0


def test_what_goes_up_and_down_is_flat() -> None:
    for seed in range(200):
        assert judge("fds", list(TIMES), noisy(np.full(len(TIMES), 54.0), seed, 5.0), 1.0).flat


def test_shrinking_is_no_growth() -> None:
    assert judge("rss", list(TIMES), (200 - TIMES / 60).tolist(), BOUND).flat
