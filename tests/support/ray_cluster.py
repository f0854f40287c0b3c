"""A Ray cluster on this machine whose nodes are hosts to muxd: each has a MUXD_HOME, a socket and a daemon of
its own. What ends a node here ends as a machine does that loses its power: without a word."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from muxd.admin.client import AdminClient
from muxd.config import home
from muxd.errors import DaemonUnreachable
from support import leaks

MARKS = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its threads and files too
]
_MEMORY = 80 << 20  # bytes of a node's object store, the least that Ray takes with room to spare


class RayHosts:
    """``url``: of the ingress. Nodes are named by their number, the first is Ray's head."""

    def __init__(self, root: Path):
        self._root = root
        self._nodes: dict[int, Any] = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.cluster: Any = None

    def start(self) -> None:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.add()
        ray.init(address=self.cluster.address, log_to_driver=False, include_dashboard=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})

    def add(self) -> int:
        """One more node; returns its number."""
        number = len(self._nodes)
        folder = self._root / str(number)
        folder.mkdir()
        (folder / "native").symlink_to(home() / "native")  # what was compiled once
        env = {"MUXD_HOME": str(folder), "XDG_RUNTIME_DIR": "", "STATE_DIRECTORY": ""}
        self._nodes[number] = self.cluster.add_node(
            num_cpus=1,
            resources={"muxd": 1},
            object_store_memory=_MEMORY,
            include_dashboard=False,
            env_vars=env,
        )
        return number

    def admin(self, number: int) -> AdminClient:
        return AdminClient(self._root / str(number) / "muxd.sock")

    def health(self) -> dict[str, str]:
        """Of each host, as the ingress says it."""
        said: dict[str, str] = httpx.get(f"{self.url}/health", timeout=60).json()["hosts"]
        return said

    def models(self) -> list[str]:
        """Of all nodes."""
        return [one.name for number in self._nodes for one in self.admin(number).models()]

    def check_books(self, *numbers: int) -> None:
        """Of hosts that are at rest: nothing is lost, nothing held."""
        for number in numbers:
            books = self.admin(number).audit()
            assert not books.fault
            assert not books.held_blocks

    def kill(self, number: int) -> None:
        """The node with its muxd."""
        pid = self.admin(number).status().pid
        self.cluster.remove_node(self._nodes[number], allow_graceful=False)
        leaks.kill({pid})

    def kill_daemon(self, number: int) -> None:
        """Its muxd alone."""
        leaks.kill({self.admin(number).status().pid})

    def stop(self) -> None:
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        for number in self._nodes:
            try:
                leaks.kill({self.admin(number).status().pid})
            except DaemonUnreachable:
                continue


@contextmanager
def ray_hosts(count: int) -> Iterator[RayHosts]:
    """A cluster of so many nodes, and nothing of it afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Sockets' paths are short.
    with tempfile.TemporaryDirectory(prefix="muxd-ray-") as root:
        hosts = RayHosts(Path(root))
        try:
            hosts.start()
            for _ in range(count - 1):
                hosts.add()
            yield hosts
        finally:
            hosts.stop()
