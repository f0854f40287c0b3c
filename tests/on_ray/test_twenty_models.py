"""Twenty models over three hosts, of which each has memory for some: a node is killed and one is added under
load, and every request ends in one way, with the tokens that a muxd alone gives."""

from pathlib import Path

import pytest
from support.fleet_clients import Clients
from support.fleet_models import served
from support.live import demo_folder, live
from support.shared import until
from support.two_units import ask

from muxd.ray import app

pytest.importorskip("ray.serve", reason="needs the extra muxd[ray]")
from support.ray_cluster import MARKS, ray_hosts

pytestmark = MARKS
TOKENS = 24
HOSTS, TINY = 3, 18
POOL = 32 << 20
WIDE = 4096  # of an MLP: a tiny model is more than what is reckoned too much for a larger one
ROOM = 4.5  # tiny models a host has memory for, of six and those that all hosts have
DEMO = {"smol": (0, 1), "gemma": (2,)}  # and their hosts
EVERYWHERE = ("m00", "m01")


def demo_table(name: str) -> str:
    folder = demo_folder(name)
    return f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\nresident = "always"\n'


def at(number: int, name: str) -> bool:
    """The host of that number has it."""
    if name in DEMO:
        return number in DEMO[name]
    return name in EVERYWHERE or int(name[1:]) % HOSTS == number


def head(weights: int, pinned: int) -> str:
    """``weights``: bytes of a tiny model's; ``pinned``: of those that stay."""
    memory, beside = POOL + pinned + int(ROOM * weights), int(ROOM * weights)
    return (
        f'[[device]]\nname = "cpu:0"\npool = "{POOL}"\nmemory = "{memory}"\n'
        f'[residency]\nhost_memory = "{beside}"\nleast = 0.2\npatience = 0.5\n[text]\nprocesses = 1\n'
    )


def float32_bytes(name: str) -> int:
    """Twice what the folder's bfloat16 takes."""
    return 2 * (demo_folder(name) / "model.safetensors").stat().st_size


@pytest.mark.timeout(900)
def test_a_node_is_killed_and_one_comes_while_models_sleep_and_wake(tmp_path: Path) -> None:
    if not all(demo_folder(name).exists() for name in DEMO):
        pytest.skip("needs the demo models: make demo")
    tables = {f"m{seed:02}": served(tmp_path / "models", f"m{seed:02}", seed, WIDE) for seed in range(TINY)}
    tables |= {name: demo_table(name) for name in DEMO}
    weights = (tmp_path / "models" / "m00" / "model.safetensors").stat().st_size
    direct = tmp_path / "direct"
    direct.mkdir()
    everything = head(TINY * weights, sum(map(float32_bytes, DEMO)))
    with live(everything + "".join(tables.values()), direct) as daemon:
        expected = {name: ask(daemon, name, TOKENS) for name in tables}
    plan = tmp_path / "plan"
    plan.mkdir()
    for number in range(HOSTS):
        here = [name for name in tables if at(number, name)]
        pinned = sum(float32_bytes(name) for name in here if name in DEMO)
        text = head(weights, pinned) + "".join(tables[name] for name in here)
        (plan / f"host-{number}.toml").write_text(text)
    with ray_hosts(HOSTS) as hosts:
        from ray import serve

        serve.run(app({"plan": str(plan), "port": "0", "drain": "5"}))
        until(lambda: list(hosts.health().values()) == ["ok"] * HOSTS)
        until(lambda: set(hosts.models()) == set(tables))
        clients = Clients(hosts.url, expected, TOKENS)
        with clients.asking(4):
            until(lambda: clients.models == set(tables))
            hosts.kill(1)
            until(lambda: list(hosts.health().values()).count("ok") == HOSTS - 1)
            clients.served_more(40)
            hosts.add()
            until(lambda: list(hosts.health().values()).count("ok") == HOSTS)
            until(lambda: bool(hosts.admin(HOSTS).status().requests.served))
            clients.served_more(40)
        assert clients.wrong == []
        hosts.check_books(0, 2, 3)
        for number in (0, 2, 3):
            woken = [event for event in hosts.admin(number).events() if event.kind == "woken"]
            assert woken, "models came and went"
