"""Several devices as one: memory on all of them, as large on each. For models that are cut over them.

What is allocated is there on every member, so a byte of the pool has the same place on each, and a head block
or a row has one name for all ranks of a model. Numbers of a mesh are those of each of its members.
"""

from collections.abc import Sequence
from math import lcm

from muxd.device.base import ClientView, Device, Piece, Region
from muxd.errors import ConfigError, MuxdError
from muxd.messages import Dtype


class MeshRegion:
    """``nbytes`` bytes on each member: ``pieces``, in the members' order."""

    def __init__(self, pieces: Sequence[Piece]):
        self.pieces = tuple(pieces)
        self.nbytes = self.pieces[0].nbytes

    @property
    def closed(self) -> bool:
        """See ``device.base.Region.closed``."""
        return all(piece.closed for piece in self.pieces)

    def close(self) -> None:
        """See ``device.base.Region.close``."""
        for piece in self.pieces:
            piece.close()


class Mesh:
    """``members`` of one kind, alike as far as batches go. ``limit``: bytes that pool and weights may take on
    each; 0: what is there.

    Raises ConfigError where they are not alike: a batch has the same share, and the same parts, on all.
    """

    def __init__(self, name: str, members: Sequence[Device], limit: int = 0):
        self.name, self.members, self._limit = name, tuple(members), limit
        first = self.members[0]
        for other in self.members[1:]:
            if (other.cores, other.rungs) != (first.cores, first.rungs):
                raise ConfigError(
                    f"device.name: {name}: {other.name} has {other.cores} cores and shares of "
                    f"{_listed(other.rungs)} %, {first.name} {first.cores} and {_listed(first.rungs)}; "
                    "members of a mesh must be alike"
                )
        self.kind, self.cores, self.rungs = first.kind, first.cores, first.rungs
        self.cpus = tuple(cpu for member in members for cpu in member.cpus)
        self.granularity = lcm(*(member.granularity for member in members))

    def seat(self, ranks: int) -> Device:
        """See ``device.base.Device.seat``."""
        if ranks == len(self.members):
            return self
        if ranks != 1:
            raise ConfigError(
                f"model.tp: {ranks} is not the number of devices of {self.name}, and a model is cut over all "
                "of them or none"
            )
        return max(self.members, key=lambda member: member.room)

    # ---- memory -----------------------------------------------------------------------------------

    @property
    def memory(self) -> int:
        """Of each member; an even part of what they share."""
        least = min(member.memory for member in self.members)
        return self._limit or least // self._sharers

    @property
    def room(self) -> int:
        """Of the member that has least."""
        least = min(member.room for member in self.members)
        return least if self.shared is None else min(least, self.shared // self._sharers)

    @property
    def shared(self) -> int | None:
        """See ``device.base.Device.shared``."""
        return self.members[0].shared

    @property
    def _sharers(self) -> int:
        """Members that have one memory."""
        return 1 if self.shared is None else len(self.members)

    def copies(self, dtype: Dtype) -> bool:
        """See ``device.base.Device.copies``."""
        return self.members[0].copies(dtype)

    def allocate(self, nbytes: int, label: str, beside: int = 0) -> MeshRegion:
        """On every member or on none."""
        pieces: list[Piece] = []
        try:
            for member in self.members:
                pieces += member.allocate(nbytes, label, beside).pieces
        except MuxdError:
            for piece in pieces:
                piece.close()
            raise
        return MeshRegion(pieces)

    def shelve(self, region: Region) -> bool:
        """Alike on all members, which are of one kind."""
        return all([m.shelve(piece) for m, piece in zip(self.members, region.pieces, strict=True)])

    def unshelve(self, region: Region, beside: int = 0) -> None:
        """On every member or on none."""
        back: list[tuple[Device, Piece]] = []
        try:
            for member, piece in zip(self.members, region.pieces, strict=True):
                member.unshelve(piece, beside)
                back.append((member, piece))
        except MuxdError:
            for member, piece in back:
                member.shelve(piece)
            raise

    # ---- sharing: as one member, since a batch has the same of each --------------------------------

    @property
    def caps(self) -> bool:
        """See ``device.base.Device.caps``."""
        return self.members[0].caps

    @property
    def parts(self) -> int:
        """See ``device.base.Device.parts``."""
        return self.members[0].parts

    def worker_env(self, cap: int = 0) -> dict[str, str]:
        """See ``device.base.Device.worker_env``; ranks meet inside the host."""
        return {**self.members[0].worker_env(cap), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}

    def attached(self, pid: int, view: ClientView, cap: int = 0) -> str:
        """One control daemon knows the clients of all."""
        return self.members[0].attached(pid, view, cap)

    def end_work(self, pid: int) -> None:
        """See ``device.base.Device.end_work``."""
        self.members[0].end_work(pid)

    def faulted(self) -> bool:
        """A fault on any."""
        return any(member.faulted() for member in self.members)

    def close(self) -> None:
        """See ``device.base.Device.close``."""
        for member in self.members:
            member.close()


def _listed(rungs: Sequence[int]) -> str:
    return ", ".join(map(str, rungs[:4])) + (" ..." if len(rungs) > 4 else "")
