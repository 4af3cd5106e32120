"""Every overlay, read by Kubernetes' own schemas, by checkov, and by what the issue promises of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.k8s.conftest import OVERLAYS, Manifest, Manifests, build, of_kind, pod_labels, pod_spec
from tests.linters import run_linters

HERE: Final = Path(__file__).parent
OLDEST, NEWEST = "1.30", "1.37"  # 1.30 is the first with a `sleep` before the end of a container
# Kinds that Kubernetes has no schema of: an operator of somebody else brings them.
OPERATOR_KINDS: Final = {"ServiceMonitor", "PrometheusRule", "ExternalSecret"}
WORKLOADS: Final = ("Deployment", "StatefulSet", "Job", "CronJob")
# What checkov advises and we do not do, and why.
WAIVED: Final = {
    "CKV_K8S_40": "the user of the image is 1000, as the specification asks; that of Postgres and Valkey is theirs",
    "CKV_K8S_43": "digests come with the registry that the images are pushed to: overlays name them",
    "CKV_K8S_15": "tags are never moved, so a node that has an image may use it while the registry is away",
    "CKV_K8S_35": "URLs and the root key are variables by contract; signing and master keys are files",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All overlays and optional components as files, so that one start of a linter reads them all: checkov's takes 5 s."""
    directory = tmp_path_factory.mktemp("manifests")
    written = []
    for place in (*(f"overlays/{name}" for name in OVERLAYS), "components/external-secrets"):
        file = directory / f"{place.replace('/', '-')}.yaml"
        file.write_text(build(place))
        written.append(str(file))
    return written


def test_oldest_and_newest_kubernetes_know_every_field(files: list[str]) -> None:
    found = json.loads(run_linters(HERE / "read_schemas.py", OLDEST, NEWEST, "--", *files))

    assert [one for one in found if one[1] not in OPERATOR_KINDS] == []
    assert {said for _, _, _, said in found} == {"no schema"}


def test_the_schemas_refuse_what_is_wrong(tmp_path: Path) -> None:
    deployment = of_kind(list(yaml.load_all(build("overlays/prod"), yaml.CSafeLoader)), "Deployment")[0]
    deployment["spec"]["minReadySecond"] = 1
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(deployment))

    found = json.loads(run_linters(HERE / "read_schemas.py", NEWEST, "--", str(tmp_path / "wrong.yaml")))

    assert [one[1] for one in found] == ["Deployment"]
    assert "minReadySecond" in found[0][3]


def test_checkov_finds_nothing_that_is_not_waived_with_a_reason(files: list[str]) -> None:
    found = json.loads(run_linters(HERE / "read_policies.py", *files))

    assert found["unread"] == []
    assert found["passed"][0] > 500
    assert found["passed"][1] > 10
    assert [one for one in found["failed"] if one[0] not in WAIVED] == []
    assert {one[0] for one in found["failed"]} == set(WAIVED)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_confined(manifests: Manifests, overlay: str) -> None:
    for workload in of_kind(manifests(overlay), *WORKLOADS):
        pod = pod_spec(workload)

        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == (999 if workload["kind"] == "StatefulSet" else 1000)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "privileged": False,
                "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert {"cpu", "memory"} == set(container["resources"]["requests"]) == set(container["resources"]["limits"])
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_carry_the_recommended_labels(manifests: Manifests, overlay: str) -> None:
    for workload in of_kind(manifests(overlay), *WORKLOADS):
        labels = pod_labels(workload)

        assert "app.kubernetes.io/name" in labels
        if labels["app.kubernetes.io/name"] == "shieldx":
            assert {"app.kubernetes.io/component", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"} <= set(
                labels
            )


def test_the_monitor_finds_the_services_and_the_runbook_what_it_names(manifests: Manifests) -> None:
    objects = manifests("prod")
    monitor = of_kind(objects, "ServiceMonitor")[0]["spec"]
    services = of_kind(objects, "Service")
    jobs = [one["spec"]["jobTemplate"] for one in of_kind(objects, "CronJob")]

    found = [one for one in services if selects(monitor["selector"], one["metadata"]["labels"])]

    assert {one["metadata"]["labels"][monitor["jobLabel"]] for one in found} == {"credits", "shadow"}
    for service in found:
        assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    for one in (*of_kind(objects, *WORKLOADS), *jobs, *of_kind(manifests("prod/migrate"), "Job")):
        assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "shieldx"


def test_the_operations_pod_is_the_migration_without_its_command(manifests: Manifests) -> None:
    job, migration = (of_kind(manifests(f"prod/{name}"), "Job")[0] for name in ("operations", "migrate"))
    (mine,), (its,) = pod_spec(job)["containers"], pod_spec(migration)["containers"]

    assert job["metadata"]["name"] != migration["metadata"]["name"]
    assert "annotations" not in job["metadata"]
    assert int(mine["args"][0]) < job["spec"]["activeDeadlineSeconds"]
    assert {key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key)} == {"name", "command", "args"}


@pytest.mark.parametrize("component", ["credits", "shadow"])
def test_production_deploys_as_promised(manifests: Manifests, component: str) -> None:
    objects = manifests("prod")
    deployment = named(objects, "Deployment", f"shieldx-{component}")
    container = pod_spec(deployment)["containers"][0]
    autoscaler = named(objects, "HorizontalPodAutoscaler", f"shieldx-{component}")["spec"]
    budget = named(objects, "PodDisruptionBudget", f"shieldx-{component}")["spec"]

    assert "replicas" not in deployment["spec"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert deployment["spec"]["minReadySeconds"] > 0
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "2", "memory": "2Gi"},
    }  # fmt: skip
    assert autoscaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"shieldx-{component}"}
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (3, 10)
    assert autoscaler["metrics"] == [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
    ]
    assert {"scaleUp", "scaleDown"} == set(autoscaler["behavior"])
    assert budget["maxUnavailable"] == 1
    assert all(deployment["metadata"]["namespace"] == one["metadata"].get("namespace", "shieldx-prod") for one in objects)
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe")} == {"/health"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_everything_that_selects_a_pod_finds_one(manifests: Manifests, overlay: str) -> None:
    objects = manifests(overlay)
    pods = [pod_labels(workload) for workload in of_kind(objects, *WORKLOADS)]
    selectors = {
        (one["kind"], one["metadata"]["name"]): selector
        for one in of_kind(objects, "Service", "Deployment", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy")
        for selector in [one["spec"].get("podSelector", one["spec"].get("selector"))]
    }
    for deployment in of_kind(objects, "Deployment"):
        pod = pod_spec(deployment)
        apart = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"]
        selectors["apart", deployment["metadata"]["name"]] = apart["labelSelector"]
        selectors["spread", deployment["metadata"]["name"]] = pod["topologySpreadConstraints"][0]["labelSelector"]

    for (kind, name), selector in selectors.items():
        found = [labels for labels in pods if selects(selector, labels)]
        expected = len(pods) if name == "default-deny" else 1
        assert len(found) >= expected, (kind, name)
        if kind in {"Service", "Deployment", "PodDisruptionBudget", "apart", "spread"}:
            assert len(found) == 1, (kind, name)


@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_traffic_is_denied_unless_a_policy_names_it(manifests: Manifests, overlay: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(manifests(overlay), "NetworkPolicy")}
    dns = policies["allow-dns"]["egress"][0]

    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]
    assert {(port["protocol"], port["port"]) for port in dns["ports"]} == {("UDP", 53), ("TCP", 53)}
    for name, policy in policies.items():
        for rule in [*policy.get("ingress", []), *policy.get("egress", [])]:
            assert rule.get("ports"), f"{name} opens every port"
            assert rule.get("to") or rule.get("from"), f"{name} opens to everybody"


def named(objects: list[Manifest], kind: str, name: str) -> Any:
    """Return the one object of this kind and name."""
    found = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector, of a Service or with matchLabels and matchExpressions, takes a pod with these labels."""
    if not {"matchLabels", "matchExpressions"} & set(selector):
        return all(labels.get(key) == value for key, value in selector.items())
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", [])
    )
