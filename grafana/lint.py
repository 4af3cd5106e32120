"""What a dashboard must have, beyond what its types enforce: each rule names the panel and what is wrong with it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import promql_parser

from grafana.board import GRID_WIDTH
from grafana.units import UNITS

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_VERSION_MIN: Final = 39
UID: Final = re.compile(r"[a-z0-9-]{8,40}")  # Grafana takes no more than 40 characters
SENTENCE: Final = re.compile(r"[A-Z0-9].+[.]", re.DOTALL)
TARGET_LABELS: Final = ("namespace", "job", "instance")
OURS: Final = re.compile(r"(shieldx|credits|shadow|http|db|pg|process)_")
# What nobody's replica shows: in Kubernetes the series of backups are recorded from those of the CronJob.
OF_NO_TARGET: Final = re.compile(r"shieldx_backup_\w+")
CUMULATIVE: Final = re.compile(r".+_(total|bucket|sum|(seconds|entries)_count)")
VARIABLE: Final = re.compile(r"\$(\w+)|\$\{(\w+)[^}]*\}")
# What Grafana itself replaces in an expression: durations.
MACROS: Final = {"__rate_interval": "5m", "__range": "1h"}
RANGE: Final = re.compile(r"([\w:]+)(?:\{[^}]*\})?\[([^\]]+)\]")
Panel = dict[str, Any]


def panels(dashboard: dict[str, Any]) -> list[Panel]:
    """Return all panels that show something: not the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where each expression stands, and the expression as it is written."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]


def filled(expression: str, values: dict[str, str]) -> str:
    """Return an expression with its variables and macros replaced.

    faults  KeyError for a variable without a value
    """
    return VARIABLE.sub(lambda found: values[found[1] or found[2]], expression)


def selectors(expression: str) -> Iterator[tuple[promql_parser.VectorSelector, str]]:
    """Yield each selector of series with the function over its range, "" where it is read as it is now.

    faults  ValueError for what PromQL does not know
    """
    found: list[tuple[promql_parser.VectorSelector, str]] = []
    function, ranged = "", False

    def visit(node: promql_parser.Expr) -> None:
        """Depth first: a range comes after the call it is an argument of, and its selector right after it."""
        nonlocal function, ranged
        if isinstance(node, promql_parser.Call):
            function = node.func.name
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node, function if ranged else ""))
        ranged = isinstance(node, promql_parser.MatrixSelector)

    promql_parser.walk(promql_parser.parse(expression), visit)
    yield from found


def faults(dashboard: dict[str, Any]) -> list[str]:
    """Return everything that is wrong with a dashboard, each as a sentence that says where."""
    return [*_whole(dashboard), *_grid(dashboard), *_panels(dashboard), *_queries(dashboard)]


def _whole(dashboard: dict[str, Any]) -> Iterator[str]:
    if not UID.fullmatch(dashboard.get("uid", "")):
        yield "the dashboard needs a uid of 8 to 40 small letters, digits and hyphens"
    for key in ("title", "description"):
        if not dashboard.get(key):
            yield f"the dashboard has no {key}"
    if dashboard.get("schemaVersion", 0) < SCHEMA_VERSION_MIN:
        yield f"schemaVersion is below {SCHEMA_VERSION_MIN}"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        yield "there is no variable `datasource`"
    used = {match[0] or match[1] for _, text in expressions(dashboard) for match in VARIABLE.findall(text)}
    for name in sorted(used - {*variables, *MACROS}):
        yield f"variable ${name} is not defined"


def _grid(dashboard: dict[str, Any]) -> Iterator[str]:
    taken: dict[tuple[int, int], str] = {}
    numbers: set[int] = set()
    for panel in dashboard["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if panel["id"] in numbers or panel["id"] < 1:
            yield f"{title}: id {panel['id']} is taken"
        numbers.add(panel["id"])
        if place["x"] + place["w"] > GRID_WIDTH:
            yield f"{title}: wider than the grid"
        cells = {
            (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
        }
        for other in sorted({taken[cell] for cell in cells if cell in taken}):
            yield f"{title}: lies upon {other}"
        taken |= dict.fromkeys(cells, title)


def _panels(dashboard: dict[str, Any]) -> Iterator[str]:
    titles: set[tuple[str, str]] = set()
    for panel in panels(dashboard):
        title = panel.get("title", "")
        if not title or (panel["type"], title) in titles:
            yield f"{title or panel['id']}: needs a title that no other panel of its kind has"
        titles.add((panel["type"], title))
        if not SENTENCE.fullmatch(panel.get("description", "")):
            yield f"{title}: needs a description, in sentences"
        settings = panel["fieldConfig"]
        if settings["defaults"].get("unit") not in UNITS:
            yield f"{title}: needs a unit, one of {', '.join(UNITS)}"
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        if any(source != {"type": "prometheus", "uid": "${datasource}"} for source in sources):
            yield f"{title}: its data source is not the variable"
        letters = [target["refId"] for target in panel["targets"]]
        if not letters or len(letters) != len(set(letters)):
            yield f"{title}: needs queries, each with a refId of its own"


def _queries(dashboard: dict[str, Any]) -> Iterator[str]:
    values = {variable["name"]: ".*" for variable in dashboard["templating"]["list"]} | MACROS
    for where, expression in expressions(dashboard):
        for name, window in RANGE.findall(expression):
            # What is recorded for an objective has windows of its own, whatever time is shown.
            if ":" not in name and window not in {f"${macro}" for macro in MACROS}:
                yield f"{where}: [{window}] does not follow the time that is shown; use [$__rate_interval]"
        try:
            found = list(selectors(filled(expression, values)))
        except (ValueError, KeyError) as fault:
            yield f"{where}: {fault}"
            continue
        for selector, function in found:
            yield from (f"{where}: {fault}" for fault in _selector(selector, function))


def _selector(selector: promql_parser.VectorSelector, function: str) -> Iterator[str]:
    name = selector.name or ""
    cumulative = CUMULATIVE.fullmatch(name) is not None
    if cumulative != (function in {"rate", "increase"}):
        yield f"{name} is {'a counter and needs' if cumulative else 'no counter for'} rate() or increase()"
    matched = {matcher.name for matcher in selector.matchers.matchers}
    if OURS.match(name) and not OF_NO_TARGET.fullmatch(name) and not matched.issuperset(TARGET_LABELS):
        yield f"{name} is not limited to the chosen {', '.join(TARGET_LABELS)}"
