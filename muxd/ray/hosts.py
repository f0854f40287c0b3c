"""The hosts as an ingress sees them: their last reports, what is under way there, what that has taught it."""

from collections import Counter
from collections.abc import Iterable, Sequence

from muxd.clock import Clock
from muxd.errors import NoHost
from muxd.ray.asked import Asked, plain_name
from muxd.ray.health import Health, lost
from muxd.ray.paces import Paces
from muxd.ray.prefixes import Prefixes
from muxd.ray.reports import GONE, HostReport, ModelReport, Seen
from muxd.ray.routing import candidate, order

_BEST = ("ready", "restarting", "waking", "loading", "asleep")  # of a model's states, the best first


class Hosts:
    """Used on one event loop. Decides by the pure files beside it, and keeps what they need."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._seen: dict[str, Seen] = {}
        self._under_way: Counter[str] = Counter()
        self._prefixes, self._paces, self._health = Prefixes(), Paces(), Health()

    def heard(self, news: Iterable[Seen]) -> list[str]:
        """Take in the newest reports of all hosts; returns those that are lost now and were not before."""
        before, self._seen = self._seen, {one.report.host: one for one in news}
        gone = [
            host
            for host, seen in before.items()
            if not lost(seen) and (host not in self._seen or lost(self._seen[host]))
        ]
        for host, seen in self._seen.items():
            if seen.report.taking == GONE:
                self._prefixes.forget(host)
        for host in gone:
            self._prefixes.forget(host)
            self._paces.forget(host)
            self._health.forget(host)
        return gone

    def url(self, host: str) -> str:
        return self._seen[host].report.url

    def why_out(self) -> dict[str, str]:
        """Of every host; "" of those that get requests."""
        now = self._clock.now()
        return {host: self._health.why_out(seen, now) for host, seen in self._seen.items()}

    def models(self) -> dict[str, str]:
        """Every model's best state at the hosts that get requests."""
        found: dict[str, str] = {}
        for report in self._able():
            for name, model in report.models.items():
                found[name] = min(found.get(name, model.state), model.state, key=_goodness)
        return found

    def order(self, asked: Asked) -> list[str]:
        """Whom to ask, the best first, each once: those that can serve the model, else whoever may say why
        not. Raises NoHost."""
        now = self._clock.now()
        able = self._able()
        serving = [(report, one) for report in able if (one := _model(report, asked.model)) is not None]
        candidates = [
            candidate(
                report.host,
                one,
                self._paces.wait(report.host, plain_name(asked.model), self.load(report.host)),
                self._prefixes.known(report.host, asked.keys),
            )
            for report, one in serving
        ]
        chosen = order([one for one in candidates if one is not None])
        if chosen := chosen or [report.host for report, _ in serving]:
            return chosen
        if any(_model(one.report, asked.model) is not None for one in self._seen.values()):
            raise NoHost("the hosts that serve this model take no requests now")
        if not able:
            told = ", ".join(sorted({self._health.why_out(one, now) for one in self._seen.values()}))
            raise NoHost(f"no host takes requests: {told or 'none has reported yet'}")
        return [report.host for report in able]

    def there(self, host: str, asked: Asked) -> bool:
        """The host's last report says that it serves the model."""
        model = _model(self._seen[host].report, asked.model) if host in self._seen else None
        return model is not None and candidate(host, model, 0.0, 0) is not None

    def load(self, host: str) -> int:
        """Sequences there: as the host has said, or more where this ingress has sent more since."""
        return max(self._seen[host].report.load, self._under_way[host])

    def sent(self, host: str, asked: Asked) -> None:
        self._under_way[host] += 1
        self._prefixes.sent(host, asked.keys)

    def began(self, host: str, model: str, seconds: float, load: int) -> None:
        """A stream began; ``load``: as it was when it was asked for."""
        self._paces.began(host, plain_name(model), seconds, load, self._clock.now())

    def ended(self, host: str) -> None:
        self._under_way[host] -= 1
        if not self._under_way[host]:
            del self._under_way[host]

    def answered(self, host: str) -> None:
        self._health.answered(host)

    def failed(self, host: str) -> None:
        self._health.failed(host, self._clock.now())

    def _able(self) -> Sequence[HostReport]:
        """Those that get requests; where none does, those whose time out is not over yet."""
        now = self._clock.now()
        takes = [one for one in self._seen.values() if not lost(one) and one.report.taking == "ok"]
        able = [one.report for one in takes if not self._health.why_out(one, now)]
        return able or [one.report for one in takes]


def _model(report: HostReport, name: str) -> ModelReport | None:
    """By its name or an alias, with Ollama's tag or without."""
    for wanted in (name, plain_name(name)):
        for model, one in report.models.items():
            if wanted == model or wanted in one.aliases:
                return one
    return None


def _goodness(state: str) -> int:
    return _BEST.index(state) if state in _BEST else len(_BEST)
