"""Where a request goes: to the device that its model is at, or its adapter's base."""

from collections.abc import Mapping
from dataclasses import dataclass

from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import ModelNotReady
from muxd.fleet.adapters import Adapter, served
from muxd.fleet.catalog import Entry
from muxd.fleet.site import Site


@dataclass(frozen=True)
class Routing:
    """``entries``: the models, as the roster keeps them."""

    entries: Mapping[str, Entry]
    sites: Mapping[str, Site]

    def submit(self, request: Request) -> TokenStream:
        """Raises as ``Unit.submit``, ModelNotReady before the model has a device."""
        request = self._of_base(request)
        entry = self.entries[request.model]
        if not entry.device:
            raise ModelNotReady(f"{entry.name} is not loaded yet: {entry.detail or entry.state}")
        return self.sites[entry.device].unit.submit(request)

    def check_room(self, request: Request) -> None:
        """As ``Unit.check_room``."""
        request = self._of_base(request)
        entry = self.entries.get(request.model)
        if entry is not None and entry.device:
            self.sites[entry.device].unit.check_room(request)

    def ahead(self, request: Request) -> int | None:
        """As ``Unit.ahead``, wherever it waits."""
        request = self._of_base(request)
        places = (site.unit.ahead(request) for site in self.sites.values())
        return next((place for place in places if place is not None), None)

    def _of_base(self, request: Request) -> Request:
        asked = served(self.entries).get(request.model)
        return asked.request(request) if isinstance(asked, Adapter) else request
