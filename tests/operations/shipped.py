"""The configuration that is shipped in grafana/, and the only two things that a live test changes of it.

Addresses: services and receivers have names in the shipped files, and ports of 127.0.0.1 in a test. Speed: every
duration (scrape and evaluation intervals, `for`, ranges and offsets in expressions, group times) is divided by the same
number, so that all relations between them hold and a minute passes in four seconds. Thresholds, labels, routes, and
everything else stay to the letter.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, Final

import yaml

from tests.server import REPOSITORY

GRAFANA: Final = REPOSITORY / "grafana"
ALERTS: Final = GRAFANA / "alerts"
RULE_FILES: Final = tuple(sorted(ALERTS.glob("*.yaml")))
TEST_FILES: Final = tuple(sorted(ALERTS.glob("tests/*.yaml")))
SPEED: Final = 15
_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
# A duration of PromQL or of a setting. Nothing else in an expression looks like one outside of names and strings.
_DURATION: Final = re.compile(r'(?<![\w."-])(\d+)(ms|s|m|h|d|w)(?![\w"])')
_DURATION_KEYS: Final = frozenset({
    "scrape_interval", "scrape_timeout", "evaluation_interval", "interval", "for", "expr", "keep_firing_for",
    "group_wait", "group_interval", "repeat_interval", "resolve_timeout",
})  # fmt: skip


def load(path: Path) -> Any:
    """Return a YAML file as it is."""
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)


def milliseconds(duration: str) -> int:
    """Return the length of a duration such as 90s or 3d."""
    found = _DURATION.fullmatch(duration)
    assert found is not None, f"{duration} is no duration of one number and one unit"
    return int(found[1]) * _UNITS_MS[found[2]]


def rules() -> list[dict[str, Any]]:
    """Return every rule, recording ones too, in the order of files and groups."""
    return [rule for path in RULE_FILES for group in load(path)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Return every alerting rule."""
    return [rule for rule in rules() if "alert" in rule]


def faster(part: Any, speed: int = SPEED) -> Any:
    """Return a configuration, or an expression, with every duration divided; at least a millisecond stays."""
    if isinstance(part, str):
        return _DURATION.sub(
            lambda found: f"{max(milliseconds(found[0]) // speed, 1)}ms" if found[1] != "0" else found[0], part
        )
    if isinstance(part, list):
        return [faster(item, speed) if isinstance(item, dict | list) else item for item in part]
    return {
        key: faster(value, speed) if isinstance(value, dict | list) or key in _DURATION_KEYS else value
        for key, value in part.items()
    }


def prometheus_at(addresses: dict[str, list[str]], alertmanager: str) -> dict[str, Any]:
    """Return the shipped prometheus.yml with these addresses by job; a job without one is scraped nowhere."""
    config: dict[str, Any] = load(GRAFANA / "prometheus.yml")
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [alertmanager]}]}]
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": addresses[job["job_name"]]}]
    return config


def alertmanager_at(receiver_url: str) -> dict[str, Any]:
    """Return the shipped alertmanager.yml with every receiver at `receiver_url` and a path of its own name."""
    config = copy.deepcopy(load(GRAFANA / "alertmanager.yml"))
    for receiver in config["receivers"]:
        for webhook in receiver["webhook_configs"]:
            webhook["url"] = f"{receiver_url}/{receiver['name']}"
    result: dict[str, Any] = config
    return result


def write_prometheus(directory: Path, config: dict[str, Any], key: str, speed: int = SPEED) -> Path:
    """Lay configuration, rules and key into a directory as they are laid out in grafana/; return the configuration."""
    (directory / "alerts").mkdir(parents=True)
    (directory / "secrets").mkdir()
    (directory / "secrets" / "metrics_key").write_text(key)
    for path in RULE_FILES:
        (directory / "alerts" / path.name).write_text(yaml.safe_dump(faster(load(path), speed), sort_keys=False))
    found = directory / "prometheus.yml"
    found.write_text(yaml.safe_dump(faster(config, speed), sort_keys=False))
    return found


def write_alertmanager(directory: Path, config: dict[str, Any], token: str, speed: int = SPEED) -> Path:
    """Lay configuration and token into a directory; return the configuration."""
    (directory / "secrets").mkdir(parents=True)
    (directory / "secrets" / "alert_token").write_text(token)
    found = directory / "alertmanager.yml"
    found.write_text(yaml.safe_dump(faster(config, speed), sort_keys=False))
    return found
