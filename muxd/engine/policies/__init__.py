"""Who runs when: policies, each with the same ``launch``. The engine's ``design.md`` compares them."""

from muxd.engine.policies.base import Policy
from muxd.engine.policies.mux import Mux
from muxd.engine.policies.ordered import FirstCome, RoundRobin
from muxd.engine.policies.servers import Servers
from muxd.engine.policies.spatial import Spatial
from muxd.engine.policies.temporal import Temporal

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (Mux, Temporal, Spatial, Servers, FirstCome, RoundRobin)
}

__all__ = ["POLICIES", "Policy"]
