"""Which host serves which file of the plan. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence


def assign(files: Sequence[str], held: Mapping[str, str], newcomer: str, load: Mapping[str, float]) -> str:
    """The file of a host that has come: the one it had, else the one that fewest of ``held`` (host -> file)
    have; of these the one with most ``load``.

    So a host that comes for one that is lost takes its place, and hosts beyond the plan's are copies where
    the work is. Raises ValueError without files.
    """
    if held.get(newcomer) in files:
        return held[newcomer]
    holders = Counter(file for host, file in held.items() if host != newcomer)
    return min(files, key=lambda file: (holders[file], -load.get(file, 0.0), files.index(file)))
