"""The alerting rules beside the dashboards, as far as a dashboard shows them: name, priority, and where the runbook is."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import yaml

ALERTS: Final = Path(__file__).parent / "alerts"


class Alert(NamedTuple):
    """An alerting rule: its name, P0 to P2 or "" for one that never pages, and the address of its part of the runbook."""

    name: str
    priority: str
    runbook: str


def alerts(directory: Path = ALERTS) -> list[Alert]:
    """Return every alerting rule in the files of `directory`, by name.

    faults  KeyError for an alert without a runbook: it could not be linked
    """
    found = [
        Alert(rule["alert"], rule["labels"].get("priority", ""), rule["annotations"]["runbook_url"])
        for path in sorted(directory.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    return sorted(found)


def runbook(known: list[Alert]) -> str:
    """Return the address of the runbook itself.

    faults  ValueError when the alerts do not share one: a link could then only lead to some of them
    """
    addresses = {alert.runbook.partition("#")[0] for alert in known}
    if len(addresses) != 1:
        raise ValueError(f"all alerts need one runbook, there are {sorted(addresses)}")
    return addresses.pop()
