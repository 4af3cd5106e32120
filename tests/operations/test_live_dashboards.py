"""Every query of every dashboard, asked of a real Prometheus that scrapes a real server with traffic."""

from __future__ import annotations

import math
import time
from typing import Any

from grafana.__main__ import texts
from tests.operations.live_stack import LiveOperations

def test_explore(live):
    import json, sys
    from grafana.lint import filled, panels, RANGE
    time.sleep(3)
    values={"namespace":".*","job":".*","instance":".*","__rate_interval":"4s","__range":"30s"}
    now=time.time()
    for name, text in texts().items():
        board=json.loads(text)
        for panel in panels(board):
            for target in panel["targets"]:
                e=filled(target["expr"],values)
                try:
                    r=live.query(e) if target["instant"] else live.query_range(e, now-30, now, 1)
                    n=sum(1 for s in r for v in (s.get("values") or [s["value"]]) if not math.isnan(float(v[1])))
                    if not n: print(name, panel["title"], target["refId"], len(r), e, file=sys.stderr)
                except AssertionError as f: print("FAULT",name, panel["title"], f, file=sys.stderr)
