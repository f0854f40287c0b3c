"""Mesh groups: how each host's devices are divided, and which divisions are worth trying."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, groupby
from math import comb

from muxd.placement.problem import Gpus, Mesh

Division = tuple[int, ...]  # mesh sizes of one host, descending
Group = tuple[Division, ...]  # one division a host


@cache
def divisions(per_host: int, sizes: tuple[int, ...] = (8, 4, 2, 1)) -> tuple[Division, ...]:
    """Every way to fill a host with meshes of ``sizes`` (descending), largest meshes first.

    For 8, 6, 4, 2 and 1 devices these are the released code's lists (10 of them for 8).
    """

    def fill(left: int, allowed: tuple[int, ...]) -> Iterator[Division]:
        if left == 0:
            yield ()
        for i, size in enumerate(allowed):
            if size <= left:
                for rest in fill(left - size, allowed[i:]):
                    yield (size, *rest)

    return tuple(fill(per_host, sizes))


def count(gpus: Gpus) -> int:
    """Mesh groups of the cluster when hosts are alike: 715 for 4 hosts of 8."""
    kinds = len(divisions(gpus.per_host))
    return comb(kinds + gpus.hosts - 1, gpus.hosts)


def groups(gpus: Gpus, least: int, models: int, limit: int = 1000) -> Iterator[Group]:
    """All mesh groups, hosts being interchangeable, but those that cannot help:

    none of whose meshes has ``least`` devices, which some model needs; with more meshes than ``models``.
    Where there are more than ``limit``, hosts are tied into fewer, equal blocks that are divided alike.
    """
    blocks = gpus.hosts
    while blocks > 1 and count(Gpus(gpus.kind, gpus.memory, gpus.per_host, blocks)) > limit:
        blocks = max(b for b in range(1, blocks) if gpus.hosts % b == 0)
    repeat = gpus.hosts // blocks
    for chosen in combinations_with_replacement(divisions(gpus.per_host), blocks):
        group = tuple(division for division in chosen for _ in range(repeat))
        if max(map(max, group)) >= least and sum(map(len, group)) <= models:
            yield group


def meshes(group: Group) -> list[Mesh]:
    """The empty meshes of a group."""
    return [Mesh(host, gpus) for host, division in enumerate(group) for gpus in division]


def packed(sizes: list[int], gpus: Gpus) -> list[int] | None:
    """A host for each mesh, or None when they do not fit. Largest first, into the first host with room.

    Exact for sizes that divide each other, as 8, 4, 2 and 1 do.
    """
    free = [gpus.per_host] * gpus.hosts
    hosts = [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        host = next((host for host, left in enumerate(free) if left >= sizes[i]), None)
        if host is None:
            return None
        free[host] -= sizes[i]
        hosts[i] = host
    return hosts


def devices(layout: list[Mesh]) -> list[tuple[int, ...]]:
    """Device numbers on its host for each mesh: aligned to its size, so that neighbours share links."""
    order = sorted(range(len(layout)), key=lambda i: (layout[i].host, -layout[i].gpus, i))
    found: list[tuple[int, ...]] = [()] * len(layout)
    for _, indices in groupby(order, key=lambda i: layout[i].host):
        start = 0
        for i in indices:
            found[i] = tuple(range(start, start + layout[i].gpus))
            start += layout[i].gpus
    return found
