"""How many nodes there are to be: one for each Ray node with the resource "muxd"."""

from typing import Any

RESOURCE = "muxd"


def one_a_node(context: Any) -> tuple[int, dict[str, Any]]:
    """An autoscaling policy of Ray Serve, which its controller calls: so a Ray node that comes gets its muxd,
    and one that goes is waited for by nobody. Ray takes this function by value: it has to import all that it
    needs."""
    import ray

    able = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("muxd", 0) >= 1]
    return max(1, len(able)), {}
