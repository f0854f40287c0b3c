"""How long a batch takes at least, by those before it: so long its worker can sleep. Pure.

A core that spins beside every batch is one that other workers lack: under MPS several have to be fed at once.
"""

_FORGET = 1.05  # how the shortest time grows with every batch that took longer


class Pace:
    """Of one phase. A batch of ``size`` (tokens of a prefill, 1 of a decode step) is expected to take
    ``size`` times about the shortest that a unit has taken lately: what is expected errs on the short side,
    for who wakes too early looks again, and who wakes too late has let the device idle."""

    def __init__(self) -> None:
        self._seconds = 0.0  # of a unit; 0: nothing is known

    def learn(self, size: int, seconds: float) -> None:
        """A batch was computed in ``seconds``."""
        unit = seconds / max(1, size)
        self._seconds = min(unit, self._seconds * _FORGET) if self._seconds else unit

    def expected(self, size: int) -> float:
        """Seconds; 0 before anything was learnt."""
        return self._seconds * size
