"""`python k8s/rules.py`, which is `make manifests`: writes the rules of grafana/alerts as PrometheusRule objects.

The Prometheus Operator wants as `spec` what Prometheus reads from a file, so a file is taken as it stands, two columns
further right, with its comments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
RULES: Final = REPOSITORY / "grafana" / "alerts"
WRITTEN: Final = REPOSITORY / "k8s" / "components" / "monitoring" / "prometheus-rules.yaml"

_OBJECT: Final = """---
# From grafana/alerts/{file}: change it there, then `make manifests`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: shieldx-{name}
  labels:
    app.kubernetes.io/name: shieldx
spec:
{spec}"""


def prometheus_rules(directory: Path = RULES) -> str:
    """Return one PrometheusRule for each file of rules in `directory`, as YAML documents."""
    return "".join(
        _OBJECT.format(file=path.name, name=path.stem, spec=_indented(path.read_text()))
        for path in sorted(directory.glob("*.yaml"))
    )


def _indented(text: str) -> str:
    return "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))


def main() -> int:
    """Write the file."""
    WRITTEN.write_text(prometheus_rules())
    return 0


if __name__ == "__main__":
    sys.exit(main())
