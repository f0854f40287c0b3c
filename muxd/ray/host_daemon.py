"""One host's muxd, from its node: adopted or started, asked for reports, ended by who started it.

Blocking, over the admin socket; the node calls it from threads.
"""

import contextlib
import http.client
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from muxd.admin.client import AdminClient, socket_path
from muxd.admin.schemas import LoadModel, Status, UnloadModel
from muxd.cli.local_daemon import start_daemon
from muxd.config import state
from muxd.errors import DaemonUnreachable, MuxdError
from muxd.ray.replanning import Order
from muxd.ray.reports import GONE, STARTING, HostReport, ModelReport, model_reports
from muxd.ray.settings import model_names

_log = logging.getLogger(__name__)
_FILE = "fleet.toml"  # in the state folder: by it a node knows a muxd that another one has started
_TIMEOUT = 5.0  # seconds
_EVERYWHERE = ("0.0.0.0", "::")
# Ray's for its own workers; muxd divides the host's cores itself.
_RAYS = ("OMP_NUM_THREADS",)
_NOWHERE = ("", "unloaded")  # states of a model that there is nothing of


class HostDaemon:
    """``host``: the node's name; ``address``: an IP of this host that ingresses reach; ``port``: for a muxd
    that is started, 0 takes a free one; ``socket`` as ``server.socket``."""

    def __init__(
        self, host: str, address: str, port: int = 0, socket: str = "", env: Mapping[str, str] = os.environ
    ):
        self.host, self._address, self._port = host, address, port
        self._env = {name: value for name, value in env.items() if name not in _RAYS}
        self._file = state(env) / _FILE
        self.admin = AdminClient(socket_path(socket, env), timeout=_TIMEOUT)
        self._process: subprocess.Popen[bytes] | None = None
        self._plan, self._text = "", ""
        self._models: dict[str, ModelReport] = {}  # as they were last known
        self._begun = False
        self._tokens: dict[str, int] = {}
        self._looked = 0.0

    def expect(self, plan: str, text: str) -> None:
        """What it is to serve: the file of that name, and what is in it."""
        self._plan, self._text = plan, text
        self._models = {name: ModelReport("loading") for name in model_names(text)}

    def begin(self) -> None:
        """Have a muxd here. One that runs is adopted, with what it serves; else one is started, and is ready
        when this returns. Raises DaemonUnreachable where it does not start."""
        try:
            found = self.admin.status()
            _log.info("adopted the muxd (pid %d) at %s", found.pid, self.admin.path)
        except DaemonUnreachable:
            self._start()
        self._begun = True

    def report(self) -> HostReport:
        """How it is now; of one that does not answer, that it does not, and what it would serve."""
        try:
            status, models = self.admin.status(), self.admin.models()
            taking = self._taking(status)
        except (MuxdError, OSError, http.client.HTTPException):
            why = GONE if self._begun else STARTING
            return HostReport(self.host, "", why, self._models, self._plan)
        now = time.monotonic()
        self._models = model_reports(status, models, self._tokens, now - self._looked)
        self._tokens, self._looked = {one.name: one.tokens_total for one in models}, now
        adopted = Path(status.config) != self._file
        return HostReport(self.host, self._url(status), taking, self._models, self._plan, adopted)

    def carried_out(self, order: Order) -> str:
        """ "", or why it cannot be. What is so already is well."""
        try:
            self._carry_out(order)
        except (MuxdError, OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        return ""

    def _carry_out(self, order: Order) -> None:
        state = {one.name: one.state for one in self.admin.models()}.get(order.model, "")
        if order.load is None:
            steps = self.admin.unload(UnloadModel(order.model)) if state not in _NOWHERE else iter(())
        elif state == "ready":
            return
        else:
            steps = self.admin.load(LoadModel(order.model if state else order.load, order.device))
        for _ in steps:
            continue

    def end(self, seconds: float) -> None:
        """Stop a muxd that a node has started, this one or one before it; one that was there already stays.

        It takes no new requests, and those that run have ``seconds``, then ``server.shutdown_grace``. One of
        our own is killed when it has not ended so long after that.
        """
        try:
            if Path(self.admin.status().config) != self._file:
                return
            drained = threading.Thread(target=self._drain, daemon=True)
            drained.start()
            drained.join(seconds)
            self.admin.stop(wait=seconds)
        except (MuxdError, TimeoutError) as error:
            _log.warning("cannot stop muxd: %s", error)
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()

    def _drain(self) -> None:
        with contextlib.suppress(MuxdError):
            for _ in self.admin.drain():
                continue

    def _start(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(self._text)
        options = ["--config", str(self._file), "--host", self._address, "--port", str(self._port)]
        self._process = start_daemon([*options, "--socket", str(self.admin.path)], self._env, None)

    def _url(self, status: Status) -> str:
        """As others reach it: an address of all interfaces is none."""
        parts = urlsplit(status.address)
        if parts.hostname not in _EVERYWHERE:
            return status.address
        shown = f"[{self._address}]" if ":" in self._address else self._address
        return f"{parts.scheme}://{shown}:{parts.port}"

    def _taking(self, status: Status) -> str:
        """What its HTTP door says: also that it answers there."""
        parts = urlsplit(self._url(status))
        if parts.scheme != "http":  # certificates are the ingress's business
            return "ok"
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT)
        try:
            connection.request("GET", "/health")
            said = msgspec.json.decode(connection.getresponse().read(), type=dict[str, object])
            return str(said.get("status", "ok"))
        except msgspec.DecodeError:
            return "ok"
        finally:
            connection.close()
