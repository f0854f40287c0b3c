"""Two hosts on a local Ray cluster, one asked for more than it does on time: one of its models moves to the
other by the rates that are measured, under load, and every request is served."""

from pathlib import Path

import pytest
from support.fleet_clients import Clients
from support.fleet_models import served
from support.live import live
from support.shared import until
from support.two_units import ask

from muxd.device import host_speed
from muxd.ray import app

pytest.importorskip("ray.serve", reason="needs the extra muxd[ray]")
from support.ray_cluster import MARKS, RayHosts, ray_hosts

pytestmark = MARKS
TOKENS = 48
CLIENTS = 16
WIDE, BYTES = 65536, 100e6  # of an MLP; of weights, which every step reads


def ready(hosts: RayHosts, number: int) -> set[str]:
    return {one.name for one in hosts.admin(number).models() if one.state == "ready"}


@pytest.mark.timeout(600)
def test_a_model_moves_to_the_host_that_has_time_for_it(tmp_path: Path) -> None:
    head = '[pool]\nbytes = "16M"\n[text]\nprocesses = 1\n'
    # What a step alone takes with something to spare, and two beside each other do not keep.
    target = 1.4 * BYTES / host_speed.bandwidth()
    tables = {
        name: served(tmp_path / "models", name, seed, WIDE) + f"tpot_slo = {target}\n"
        for seed, name in enumerate(("a", "b"))
    }
    tables["c"] = served(tmp_path / "models", "c", 2)
    direct = tmp_path / "direct"
    direct.mkdir()
    with live(head + "".join(tables.values()), direct) as daemon:
        expected = {name: ask(daemon, name, TOKENS) for name in tables}
    plan = tmp_path / "plan"
    plan.mkdir()
    (plan / "host-0.toml").write_text(head + tables["a"] + tables["b"])
    (plan / "host-1.toml").write_text(head + tables["c"])
    with ray_hosts(2) as hosts:
        from ray import serve

        serve.run(app({"plan": str(plan), "port": "0", "drain": "5", "replan": "2"}))
        until(lambda: list(hosts.health().values()) == ["ok"] * 2)
        until(lambda: sorted(map(len, (ready(hosts, 0), ready(hosts, 1)))) == [1, 2])
        full = 0 if len(ready(hosts, 0)) == 2 else 1
        clients = Clients(hosts.url, {name: expected[name] for name in ("a", "b")}, TOKENS)
        with clients.asking(CLIENTS):
            until(lambda: len(ready(hosts, full)) == 1 and len(ready(hosts, 1 - full)) == 2)
            (stayed,) = ready(hosts, full)
            assert stayed in ("a", "b")
            assert ready(hosts, 1 - full) == set(tables) - {stayed}
            clients.served_more(40)
        assert set(clients.ends) == {"served", "streamed"}, clients.ends
        hosts.check_books(0, 1)
