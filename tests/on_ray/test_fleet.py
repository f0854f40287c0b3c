"""Three hosts on a local Ray cluster: a node is killed, one is added, a muxd dies, all under load, and every
request ends in one way, with the tokens that a muxd alone gives."""

import http.client
import json
from pathlib import Path

import httpx2 as httpx
import pytest
from support.fleet_clients import Clients
from support.fleet_models import served
from support.live import live
from support.shared import until
from support.two_units import ask, body

from muxd.ray import app

pytest.importorskip("ray.serve", reason="needs the extra muxd[ray]")
from support.ray_cluster import MARKS, RayHosts, ray_hosts

pytestmark = MARKS
TOKENS = 48
MODELS = ("a", "b", "c")


def check_cancels(hosts: RayHosts) -> None:
    """Of clients that go away, in the midst of a stream and before an answer, nothing goes on at a host."""

    def running() -> int:
        return sum(hosts.admin(number).status().requests.running for number in range(3))

    def cancelled() -> int:
        return sum(hosts.admin(number).status().requests.cancelled for number in range(3))

    url = f"{hosts.url}/v1/completions"
    with httpx.stream("POST", url, json=body("a", 8000, stream=True), timeout=60) as answer:
        next(answer.iter_lines())  # perhaps a sign of life before it runs
        until(lambda: running() == 1)
    until(lambda: (running(), cancelled()) == (0, 1))
    connection = http.client.HTTPConnection("127.0.0.1", hosts.port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body("b", 8000)), headers)
    until(lambda: running() == 1)
    connection.close()
    until(lambda: (running(), cancelled()) == (0, 2))


@pytest.mark.timeout(600)
def test_a_node_that_is_killed_one_that_comes_and_a_muxd_that_dies(tmp_path: Path) -> None:
    head = '[pool]\nbytes = "16M"\n[text]\nprocesses = 1\n'
    tables = {name: served(tmp_path / "models", name, seed) for seed, name in enumerate(MODELS)}
    direct = tmp_path / "direct"
    direct.mkdir()
    with live(head + "".join(tables.values()), direct) as daemon:
        expected = {name: ask(daemon, name, TOKENS) for name in MODELS}
    plan = tmp_path / "plan"
    plan.mkdir()
    (plan / "host-0.toml").write_text(head + tables["a"] + tables["b"])
    (plan / "host-1.toml").write_text(head + tables["a"] + tables["c"])
    with ray_hosts(3) as hosts:
        from ray import serve

        serve.run(app({"plan": str(plan), "port": "0", "drain": "5"}))
        until(lambda: list(hosts.health().values()) == ["ok"] * 3)
        until(lambda: [hosts.admin(number).status().models for number in range(3)] == [{"ready": 2}] * 3)
        assert set(hosts.models()) == set(MODELS)
        check_cancels(hosts)
        clients = Clients(hosts.url, expected, TOKENS)
        with clients.asking(4):
            until(lambda: clients.served() > 40)
            hosts.kill(1)
            until(lambda: list(hosts.health().values()).count("ok") == 2)
            clients.served_more(40)
            hosts.add()
            until(lambda: list(hosts.health().values()).count("ok") == 3)
            until(lambda: bool(hosts.admin(3).status().requests.served))  # it is asked as the others are
            hosts.kill_daemon(2)
            until(lambda: list(hosts.health().values()).count("ok") == 2)
            until(lambda: list(hosts.health().values()).count("ok") == 3)  # its node has started another
            clients.served_more(40)
        assert clients.wrong == []
        assert clients.ends["served"]
        assert clients.ends["streamed"]
        hosts.check_books(0, 2, 3)
