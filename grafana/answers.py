"""What Prometheus answers to the queries of a panel, over the time that is shown."""

from __future__ import annotations

import http.client
import json
import math
import re
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from grafana.lint import filled

TIMEOUT_S: Final = 30.0
LABEL: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")


class Window(NamedTuple):
    """The time that is shown, and what the variables of dashboards stand for in it.

    values  by name, without the $: the chosen targets, and the durations of Grafana's own variables
    """

    start_s: float
    end_s: float
    step_s: float
    values: dict[str, str]


class Series(NamedTuple):
    """One series of an answer: what it is called, its labels, and times and values. A table has one point of each."""

    name: str
    labels: dict[str, str]
    points: list[tuple[float, float]]


class QueryError(Exception):
    """Prometheus did not answer a query; the message has the query and what it said."""


class Prometheus:
    """The HTTP API of a Prometheus at host:port."""

    def __init__(self, address: str) -> None:
        """Nothing is asked yet."""
        self._address = address

    def _ask(self, path: str, query: dict[str, str | float]) -> Any:
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        try:
            connection.request("GET", f"/api/v1/{path}?{urlencode(query)}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer["status"] != "success":
            raise QueryError(f"{query}: {answer.get('error')}")
        return answer["data"]

    def names(self) -> set[str]:
        """Return the names of all series that were ever scraped or recorded."""
        return set(self._ask("label/__name__/values", {}))

    def series(self, target: dict[str, Any], window: Window) -> list[Series]:
        """Return the answer to one query of a panel, without what is not a number. A table is asked at the end alone.

        faults  QueryError for an expression that Prometheus refuses; KeyError for a variable that `window` does not have
        """
        expression = filled(target["expr"], window.values)
        if target.get("instant"):
            found = self._ask("query", {"query": expression, "time": window.end_s})["result"]
        else:
            span: dict[str, str | float] = {"start": window.start_s, "end": window.end_s, "step": window.step_s}
            found = self._ask("query_range", {"query": expression, **span})["result"]
        series = []
        for one in found:
            pairs = one["values"] if "values" in one else [one["value"]]
            points = [(at, number) for at, text in pairs if not math.isnan(number := float(text))]
            series.append(Series(called(target["legendFormat"], one["metric"]), one["metric"], points))
        return [one for one in series if one.points]


def called(legend: str, labels: dict[str, str]) -> str:
    """Return what a series is called: the legend with the values of its labels, or all labels where there is no legend."""
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()) if name != "__name__")
    return LABEL.sub(lambda found: labels.get(found[1], ""), legend)
