"""The worth of a set of models on a mesh, at the shares its appraiser gives it. What searches look up."""

from muxd.placement.appraiser import Appraiser

_REMEMBERED = 200_000  # sets; then it begins anew

Worth = tuple[float, tuple[int, ...]]  # value, decode shares


class Sets:
    """Remembers every set it was asked for."""

    def __init__(self, appraiser: Appraiser):
        self.appraiser = appraiser
        self._known: dict[tuple[int, tuple[int, ...]], Worth | None] = {}

    def worth(self, gpus: int, models: tuple[int, ...]) -> Worth | None:
        """None when they do not fit. ``models`` ascending; none are worth 0."""
        if not models:
            return 0.0, ()
        key = (gpus, models)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = self._compute(gpus, models)
        return self._known[key]

    def _compute(self, gpus: int, models: tuple[int, ...]) -> Worth | None:
        shares = self.appraiser.shares(gpus, models)
        if shares is None or not self.appraiser.fits(gpus, models, shares):
            return None
        return self.appraiser.value(gpus, models, shares), shares
