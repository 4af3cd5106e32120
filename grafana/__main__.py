"""`python -m grafana`, which is `make dashboards`: writes grafana/dashboards/*.json anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from grafana.alert_summary import alert_summary
from grafana.board import Board, text
from grafana.database import database
from grafana.experiments import experiments
from grafana.locator import locator
from grafana.overview import overview
from grafana.rules import Runbook, alerts

DASHBOARDS: Final = Path(__file__).parent / "dashboards"


def boards(runbook: Runbook) -> dict[str, Board]:
    """Return every dashboard by the name of its file."""
    return {
        "overview.json": overview(),
        "database.json": database(),
        "alerts.json": alert_summary(runbook),
        "experiments.json": experiments(),
        "locator.json": locator(),
    }


def texts() -> dict[str, str]:
    """Return the JSON of every dashboard by the name of its file."""
    runbook = Runbook(alerts())
    return {name: text(board, runbook) for name, board in boards(runbook).items()}


def main() -> int:
    """Write the files, and remove those of dashboards that are no more."""
    DASHBOARDS.mkdir(exist_ok=True)
    written = texts()
    for name, content in written.items():
        (DASHBOARDS / name).write_text(content)
    for path in DASHBOARDS.glob("*.json"):
        if path.name not in written:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
