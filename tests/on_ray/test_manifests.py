"""The manifests of docs/fleet.md: Kubernetes' schemas, and what they say about muxd is so."""

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from muxd.api.routes import ROUTES
from muxd.config import Config
from muxd.ray.scaling import RESOURCE
from muxd.ray.settings import arguments

FOLDER = Path(__file__).parents[2] / "docs" / "fleet"
RELEASE = "1.34"
Object = dict[str, Any]


def objects(file: str) -> dict[str, Object]:
    """By kind."""
    found = list(yaml.safe_load_all((FOLDER / file).read_text()))
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def pods(file: str) -> dict[str, Object]:
    """The pod specifications in it, by name."""
    kinds = objects(file)
    if "DaemonSet" in kinds:
        return {"daemonset": kinds["DaemonSet"]["spec"]["template"]["spec"]}
    cluster = kinds["RayService"]["spec"]["rayClusterConfig"]
    groups = {one["groupName"]: one["template"]["spec"] for one in cluster["workerGroupSpecs"]}
    return groups | {"head": cluster["headGroupSpec"]["template"]["spec"]}


@pytest.mark.ray
@pytest.mark.parametrize("file", ["daemonset.yaml", "kuberay.yaml"])
def test_kubernetes_would_take_them(file: str) -> None:
    """KubeRay's own kind has no schema on the index; the pods in it have Kubernetes'."""
    schemas = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (make test-ray)")
    told = [one for kind, one in objects(file).items() if kind != "RayService"]
    for name, spec in pods(file).items():
        told.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    for one in told:
        schemas.validate(one, RELEASE, strict=True)


@pytest.mark.parametrize("file", ["daemonset.yaml", "kuberay.yaml"])
def test_what_a_container_mounts_is_there_and_limits_are_requests(file: str) -> None:
    for spec in pods(file).values():
        volumes = {one["name"] for one in spec.get("volumes", [])}
        for container in spec["containers"]:
            assert {one["name"] for one in container.get("volumeMounts", [])} <= volumes
            resources = container["resources"]
            for kind in ("memory", "nvidia.com/gpu"):
                assert resources["limits"].get(kind) == resources["requests"].get(kind)


@pytest.mark.parametrize("file", ["serve.yaml", "kuberay.yaml"])
def test_the_application_is_ours_and_takes_its_arguments(file: str) -> None:
    text = (FOLDER / file).read_text()
    config = objects(file)["RayService"]["spec"]["serveConfigV2"] if file == "kuberay.yaml" else text
    (application,) = yaml.safe_load(config)["applications"]
    assert application["import_path"] == "muxd.ray:app"
    assert application["route_prefix"] == "/"
    given = arguments(application["args"])
    assert given.gpus == 8
    if file == "kuberay.yaml":
        (worker,) = pods(file)["hosts"]["containers"]
        assert {"name": "muxd", "containerPort": given.port} in worker["ports"]
        assert worker["resources"]["limits"]["nvidia.com/gpu"] == f"{given.gpus:.0f}"
        (mount,) = pods(file)["head"]["containers"][0]["volumeMounts"]
        assert mount["mountPath"] == given.plan


def test_rays_workers_are_hosts_and_its_head_is_none() -> None:
    cluster = objects("kuberay.yaml")["RayService"]["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {RESOURCE: 1}
    assert "resources" not in cluster["headGroupSpec"]["rayStartParams"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_the_daemonset_is_probed_drained_and_reached() -> None:
    kinds = objects("daemonset.yaml")
    (container,) = pods("daemonset.yaml")["daemonset"]["containers"]
    served = {route.path for route in ROUTES if route.method == "GET"}
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe")} <= served
    assert kinds["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"] in served
    config = msgspec.convert(tomllib.loads(kinds["ConfigMap"]["data"]["muxd.toml"]), Config)
    socket = ["--socket", config.server.socket]
    assert container["livenessProbe"]["exec"]["command"] == ["muxctl", "status", *socket]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["muxctl", "drain", *socket]
    grace = pods("daemonset.yaml")["daemonset"]["terminationGracePeriodSeconds"]
    assert config.server.shutdown_grace < grace
    mounts = [one["mountPath"] for one in container["volumeMounts"]]
    assert str(Path(config.server.keys).parent) in mounts
    assert str(Path(config.server.socket).parent) in mounts
    assert kinds["Service"]["spec"]["selector"] == kinds["DaemonSet"]["spec"]["selector"]["matchLabels"]
    ((_, port),) = [(one["name"], one["targetPort"]) for one in kinds["Service"]["spec"]["ports"]]
    assert {"name": port, "containerPort": config.server.port} in container["ports"]
    (rule,) = kinds["Ingress"]["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == kinds["Service"]["metadata"]["name"]
