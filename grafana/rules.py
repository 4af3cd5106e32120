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


class Runbook:
    """Where each alert is explained.

    address  of the whole
    """

    def __init__(self, known: list[Alert]) -> None:
        """Take all alerts.

        faults  ValueError when they do not share one runbook: a link could then only lead to some of them
        """
        addresses = {alert.runbook.partition("#")[0] for alert in known}
        if len(addresses) != 1:
            raise ValueError(f"all alerts need one runbook, there are {sorted(addresses)}")
        self.address: Final = addresses.pop()
        self.parts: Final = {alert.name: alert.runbook for alert in known}
        """Addresses by name of the alert."""
