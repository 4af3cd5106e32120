"""What kubectl makes of each overlay."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import pytest
import yaml

from tests.linters import linter
from tests.server import REPOSITORY

OVERLAYS: Final = ("dev", "prod", "prod/migrate", "prod/operations")
TIMEOUT_S: Final = 120
Manifest = dict[str, Any]
Manifests = Callable[[str], list[Manifest]]


@cache
def build(overlay: str) -> str:
    """Return what `kubectl apply -k` would send for a directory below k8s/."""
    run = subprocess.run(
        [linter("kubectl"), "kustomize", f"k8s/{overlay}"], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == "", run.stderr
    return run.stdout


@cache
def parsed(overlay: str) -> list[Manifest]:
    """Return the objects of an overlay."""
    return list(yaml.load_all(build(f"overlays/{overlay}"), yaml.CSafeLoader))


@pytest.fixture(scope="session")
def manifests() -> Manifests:
    """Give the objects of an overlay."""
    return parsed


def of_kind(objects: list[Manifest], *kinds: str) -> list[Manifest]:
    """Return the objects of some kinds."""
    return [one for one in objects if one["kind"] in kinds]


def pod_spec(workload: Manifest) -> Manifest:
    """Return the pod that a Deployment, StatefulSet, Job or CronJob makes."""
    spec = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return dict(spec["template"]["spec"])


def pod_labels(workload: Manifest) -> dict[str, str]:
    """Return the labels of the pods of a workload."""
    spec = workload["spec"]
    if workload["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    return dict(spec["template"]["metadata"]["labels"])
