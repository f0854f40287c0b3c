"""What a check has to say: one line for people, the same for programs."""

from typing import Literal

from msgspec import Struct, field

State = Literal["ok", "degraded", "missing"]


class Finding(Struct, frozen=True):
    """One line of the doctor's answer.

    ok: as it should be. degraded: muxd serves, with less than the host could give. missing: it is not there;
    with ``needed`` muxd cannot serve what it was asked to serve.
    """

    check: str
    state: State
    found: str  # what was seen or measured
    meaning: str  # what follows for whoever runs muxd
    todo: str = ""  # what to do, where something can be done
    needed: bool = False
    numbers: dict[str, float] = field(default_factory=dict)  # measured, by name with unit

    @property
    def fatal(self) -> bool:
        """Whether muxd cannot serve because of it."""
        return self.state == "missing" and self.needed


class Report(Struct, frozen=True):
    """All findings of one run."""

    version: str
    taken: str  # ISO 8601, UTC
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0, or 1 when something needed is missing."""
        return int(any(finding.fatal for finding in self.findings))
