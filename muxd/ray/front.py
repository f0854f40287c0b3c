"""The ingress without Ray: a request in, an answer out, in muxd's shapes."""

import asyncio

import msgspec

from muxd.clock import Clock, MonotonicClock
from muxd.errors import NotFound
from muxd.ray.asked import Asked, asked
from muxd.ray.hosts import Hosts
from muxd.ray.merging import merged
from muxd.ray.proxy import Proxy, ProxyAnswer, ProxyCall
from muxd.ray.saying import refusal

_JSON = [("Content-Type", "application/json")]


class Front:
    """Every request that ``answer`` is given ends in one way: an answer, or what a stream's last frame
    says."""

    def __init__(self, clock: Clock | None = None):
        self.hosts = Hosts(clock or MonotonicClock())
        self.proxy = Proxy(self.hosts, clock)

    async def answer(self, call: ProxyCall) -> ProxyAnswer:
        try:
            return await self._answer(call)
        except Exception as error:  # what nobody expected is logged without its message
            anthropic = bool(call.header("anthropic-version"))
            return ProxyAnswer(*refusal(error, call.path, call.id, anthropic=anthropic))

    async def _answer(self, call: ProxyCall) -> ProxyAnswer:
        wanted = asked(call.method, call.path, call.query, call.body, call.header("content-encoding"))
        if wanted is None:
            raise NotFound(f"Unknown request URL: {call.method} {call.path[:100]}", code="unknown_url")
        match wanted.reach:
            case "own":
                return self._own(call)
            case "host":
                raise NotFound(
                    f"{call.path[:100]} is about one host: ask its muxd at its own address",
                    code="unknown_url",
                )
            case "all":
                return await self._all(call)
            case "search":
                return await self._search(call)
        return await self.proxy.forward(call, wanted, self.hosts.order(wanted))

    def _own(self, call: ProxyCall) -> ProxyAnswer:
        """200 while a host takes requests, else 503: hosts and why they get none, models by their best
        state."""
        out = self.hosts.why_out()
        ok = "" in out.values()
        said = {
            "status": "ok" if ok else "no host takes requests",
            "hosts": {host: why or "ok" for host, why in out.items()},
            "models": self.hosts.models(),
        }
        return ProxyAnswer(200 if ok else 503, _JSON, msgspec.json.encode(said))

    async def _all(self, call: ProxyCall) -> ProxyAnswer:
        """Of every host that gets requests. Raises NoHost."""
        hosts = self.hosts.order(Asked("all"))
        told = await asyncio.gather(*(self.proxy.whole(call, host) for host in hosts))
        answers = [one for one in told if one is not None]
        good = [one for one in answers if one.status == 200]
        if not good:
            return answers[0] if answers else await self.proxy.forward(call, Asked("any"), hosts)
        first = good[0]
        return ProxyAnswer(
            200, first.headers, merged([one.body for one in good if isinstance(one.body, bytes)])
        )

    async def _search(self, call: ProxyCall) -> ProxyAnswer:
        """The host that knows the id answers; where none does, one of them says so. Raises NoHost."""
        hosts = self.hosts.order(Asked("search"))
        told = await asyncio.gather(*(self.proxy.whole(call, host) for host in hosts))
        answers = sorted((one for one in told if one is not None), key=lambda one: one.status == 404)
        return answers[0] if answers else await self.proxy.forward(call, Asked("any"), hosts)

    async def close(self) -> None:
        await self.proxy.close()
