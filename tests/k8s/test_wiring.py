"""What manifests, image and program have to agree on: settings, ports, times, paths, connections."""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import pytest
import yaml

from app.credits.routes import ROUTES as CREDIT_ROUTES
from app.locator.routes import LOCATOR_ROUTES
from app.settings import SERVICES, read_settings, variable_of
from app.shadow.api import EXPERIMENT_ROUTES
from app.shadow.flags_api import FLAG_ROUTES
from app.shadow.rules_api import RULE_ROUTES
from tests.guide import GUIDE
from tests.k8s.conftest import Manifest, Manifests, of_kind, pod_spec
from tests.k8s.test_manifests import named
from tests.server import REPOSITORY

COMPONENTS: Final = ("credits", "shadow")
STOP_RESERVE_S: Final = 10  # for the lease of the ledger, and a node that is busy


def environment_of(objects: list[Manifest], workload: Manifest) -> dict[str, str]:
    """Return the variables that the first container of a workload starts with, from ConfigMaps and Secrets too."""
    found: dict[str, str] = {}
    container = pod_spec(workload)["containers"][0]
    for source in container.get("envFrom", []):
        kind, name = ("ConfigMap", source["configMapRef"]["name"]) if "configMapRef" in source else (
            "Secret", source["secretRef"]["name"])  # fmt: skip
        for one in of_kind(objects, kind):
            if one["metadata"]["name"] == name:
                found |= one["data"] if kind == "ConfigMap" else decoded(one)
    return found | {one["name"]: one.get("value", "a-pod") for one in container.get("env", [])}


def decoded(secret: Manifest) -> dict[str, str]:
    """Return what a Secret holds."""
    return {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_the_program_takes_every_variable_of_a_pod(manifests: Manifests, overlay: str, component: str) -> None:
    objects = manifests(overlay)
    given = environment_of(objects, named(objects, "Deployment", f"shieldx-{component}"))
    known = {variable_of(name) for name in read_settings({}, {}).__struct_fields__}

    settings = read_settings({}, given)

    assert set(given) <= known
    assert settings.host == "0.0.0.0"
    assert settings.replica_name == "a-pod"
    if overlay == "dev":
        assert settings.redis_url
        assert settings.database_url
        assert settings.root_key


def test_the_two_deployments_run_every_service_once(manifests: Manifests) -> None:
    objects = manifests("prod")

    run = [
        service for component in COMPONENTS
        for service in read_settings(
            {}, environment_of(objects, named(objects, "Deployment", f"shieldx-{component}"))
        ).services
    ]  # fmt: skip

    assert sorted(run) == sorted(SERVICES)


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_ports_are_those_that_the_program_listens_on(manifests: Manifests, overlay: str, component: str) -> None:
    objects = manifests(overlay)
    deployment = named(objects, "Deployment", f"shieldx-{component}")
    settings = read_settings({}, environment_of(objects, deployment))
    listens = {"http": settings.port, "shadow": settings.shadow_port}
    container = pod_spec(deployment)["containers"][0]

    assert {port["name"]: port["containerPort"] for port in container["ports"]} == listens
    for port in named(objects, "Service", f"shieldx-{component}")["spec"]["ports"]:
        assert port["port"] == listens[port["targetPort"]]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in listens
    exposed = re.search(r"^EXPOSE (.+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert exposed[1].split() == [str(port) for port in listens.values()]


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_has_time_for_everything_that_its_end_takes(manifests: Manifests, overlay: str, component: str) -> None:
    objects = manifests(overlay)
    deployment = named(objects, "Deployment", f"shieldx-{component}")
    settings = read_settings({}, environment_of(objects, deployment))
    pod = pod_spec(deployment)
    container = pod["containers"][0]
    readiness = container["readinessProbe"]

    ends_s = (
        container["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.shutdown_delay_seconds + settings.shutdown_grace_seconds
    )

    assert pod["terminationGracePeriodSeconds"] >= ends_s + STOP_RESERVE_S
    assert settings.shutdown_delay_seconds >= readiness["periodSeconds"] * readiness["failureThreshold"]


def test_secrets_that_pods_read_are_all_told_how_to_make(manifests: Manifests) -> None:
    objects = manifests("prod")
    wanted = set(re.findall(r"(?:secretRef|secretKeyRef)': {'name': '([a-z-]+)'|'secretName': '([a-z-]+)'", str(objects)))
    names = {name for pair in wanted for name in pair if name} | {
        monitor["spec"]["endpoints"][0]["authorization"]["credentials"]["name"] for monitor in of_kind(objects, "ServiceMonitor")
    }

    assert {"shieldx-secrets", "shieldx-keys", "shieldx-owner", "shieldx-metrics", "shieldx-tls"} == names
    assert [name for name in names if f"secret generic {name}" not in GUIDE and f"secret tls {name}" not in GUIDE] == []


def test_secrets_from_a_vault_have_the_names_that_pods_read(manifests: Manifests) -> None:
    external = list(
        yaml.safe_load_all((REPOSITORY / "k8s/components/external-secrets/external-secrets.yaml").read_text())
    )

    assert {one["spec"]["target"]["name"] for one in external} == {"shieldx-secrets", "shieldx-keys", "shieldx-owner"}
    assert all(one["metadata"]["name"] == one["spec"]["target"]["name"] for one in external)


def test_the_ingress_sends_each_path_to_who_has_it(manifests: Manifests) -> None:
    paths = {
        path["path"]: path["backend"]["service"]
        for path in of_kind(manifests("prod"), "Ingress")[0]["spec"]["rules"][0]["http"]["paths"]
    }

    def backend(path: str) -> Any:
        fitting = [prefix for prefix in paths if prefix == "/" or path == prefix or path.startswith(prefix + "/")]
        return paths[max(fitting, key=len)]["name"]

    for routes, name in (
        ((*EXPERIMENT_ROUTES, *RULE_ROUTES, *FLAG_ROUTES), "shieldx-shadow"),
        ((*CREDIT_ROUTES, *LOCATOR_ROUTES), "shieldx-credits"),
    ):
        assert {route.path for route in routes if backend(route.path) != name} == set()
