"""A page in a browser that must neither fail nor ask anybody else for anything."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SHOTS = os.environ.get("MUXD_SHOTS", "")  # a folder for pictures of the page


class Opened:
    """A page of ``url``, and what it must not do: fail, break the policy, ask elsewhere."""

    def __init__(self, browser: Any, url: str, key: str = "", **options: Any):
        self.url, self.faults = url, list[str]()
        self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", self._asked)
        if key:
            # As a person's key lies there, in this tab alone.
            self.page.add_init_script(f"sessionStorage.setItem('muxd-key', '{key}')")
        self.page.goto(url)

    def live(self) -> "Opened":
        self.page.wait_for_selector("#link[data-state=live]")
        return self

    def close(self) -> None:
        self.context.close()
        assert self.faults == []

    def shoot(self, name: str, **options: Any) -> None:
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png", **options)

    def _said(self, message: Any) -> None:
        """What a refusal or a server that has ended leaves in the console is no fault of the page."""
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def _asked(self, request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.faults.append(f"asks {request.url}")
