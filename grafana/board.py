"""A dashboard: its rows of panels, where each panel lies, and the variables, links and marks that all dashboards share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationContainer,
    AnnotationQuery,
    Dashboard,
    DashboardCursorSync,
    DashboardDashboardTemplating,
    DashboardDashboardTime,
    DashboardLink,
    DashboardLinkType,
    GridPos,
    Panel,
    RowPanel,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
    VariableType,
)

from grafana.panels import DATASOURCE
from grafana.promql import chosen
from grafana.rules import Runbook

GRID_WIDTH: Final = 24  # cells, Grafana's own
TAG: Final = "shieldx"
STARTED_S: Final = 60  # seconds; a process that is younger is marked as started, once at the usual interval of scrapes


class Row(NamedTuple):
    """A titled row of panels, which flow from left to right."""

    title: str
    panels: tuple[Panel, ...]


class Board(NamedTuple):
    """What one dashboard is.

    uid     its address for good: links and bookmarks hold it
    alerts  by title of a panel: the alerts on what it shows, whose parts of the runbook it links
    """

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    alerts: Mapping[str, tuple[str, ...]]
    time_from: str = "now-1h"


def _label_variable(name: str, label: str, matchers: str, everything: str | None = ".*") -> VariableModel:
    """Return a variable with all values that a label has.

    everything  what `All` stands for: by default what also matches targets without the label; None for all values
    """
    query = f"label_values(shieldx_build_info{{{matchers}}}, {name})"
    return VariableModel(
        type_val=VariableType.QUERY, name=name, label=label, datasource=DATASOURCE,
        query={"query": query, "refId": "StandardVariableQuery"}, refresh=VariableRefresh.ON_TIME_RANGE_CHANGED,
        sort=VariableSort.ALPHABETICAL_ASC, multi=True, include_all=True, all_value=everything,
        current=VariableOption(selected=True, text=["All"], value=["$__all"]),
    )  # fmt: skip


def _variables() -> list[VariableModel]:
    datasource = VariableModel(
        type_val=VariableType.DATASOURCE, name="datasource", label="Data source", query="prometheus",
        refresh=VariableRefresh.ON_DASHBOARD_LOAD, current=VariableOption(selected=True, text="default", value="default"),
    )  # fmt: skip
    return [
        datasource,
        _label_variable("namespace", "Namespace", ""),
        # Not every job: Prometheus, too, has processes, with memory and files of their own.
        _label_variable("job", "Job", 'namespace=~"$namespace"', None),
        _label_variable("instance", "Instance", 'namespace=~"$namespace",job=~"$job"'),
    ]


def _marks() -> list[AnnotationQuery]:
    """Return what is marked across all panels: processes that started, so that a deployment or a crash is seen."""
    return [
        AnnotationQuery(
            name="Starts", datasource=DATASOURCE, enable=True, icon_color="blue",
            expr=f"time() - {chosen('process_start_time_seconds')} < {STARTED_S}",
        )
    ]  # fmt: skip


def _links(board: Board, runbook: Runbook) -> list[DashboardLink]:
    return [
        DashboardLink(
            title="shieldx dashboards", type_val=DashboardLinkType.DASHBOARDS, icon="external link", tags=[TAG],
            as_dropdown=True, include_vars=True, keep_time=True, tooltip=f"The others beside {board.title}",
        ),
        DashboardLink(title="Runbook", type_val=DashboardLinkType.LINK, icon="doc", url=runbook.address, target_blank=True,
                      tooltip="What each alert means and how to mend it"),
    ]  # fmt: skip


def _placed(rows: tuple[Row, ...]) -> list[Panel | RowPanel]:
    """Number all panels and lay them on the grid: beside each other while there is room, then below the highest of them."""
    placed: list[Panel | RowPanel] = []
    top = 0
    for row in rows:
        placed.append(RowPanel(title=row.title, id_val=len(placed) + 1, grid_pos=GridPos(h=1, w=GRID_WIDTH, x=0, y=top)))
        top += 1
        left = height = 0
        for panel in row.panels:
            assert panel.grid_pos is not None
            if left + panel.grid_pos.w > GRID_WIDTH:
                top, left, height = top + height, 0, 0
            panel.id_val, panel.grid_pos.x, panel.grid_pos.y = len(placed) + 1, left, top
            left, height = left + panel.grid_pos.w, max(height, panel.grid_pos.h)
            placed.append(panel)
        top += height
    return placed


def _explained(board: Board, runbook: Runbook) -> list[Panel | RowPanel]:
    """Place the panels and link those that alerts are about.

    faults  KeyError for an alert that there is not, ValueError for a title that no panel has
    """
    placed = _placed(board.rows)
    if unknown := set(board.alerts) - {panel.title for panel in placed}:
        raise ValueError(f"{board.title} has no panels {sorted(unknown)}")
    for panel in placed:
        if isinstance(panel, Panel):
            names = board.alerts.get(panel.title or "", ())
            panel.links = [DashboardLink(title=name, url=runbook.parts[name], target_blank=True) for name in names]
    return placed


def text(board: Board, runbook: Runbook) -> str:
    """Return the JSON of a dashboard, which is the same at every call. `runbook` is linked from it.

    faults  KeyError, ValueError for alerts and panels of `board.alerts` that there are not
    """
    dashboard = Dashboard(
        uid=board.uid, title=board.title, description=board.description, tags=[TAG], timezone="browser", editable=False,
        graph_tooltip=DashboardCursorSync.CROSSHAIR, refresh="30s", version=1, panels=_explained(board, runbook),
        time=DashboardDashboardTime(from_val=board.time_from, to="now"),
        templating=DashboardDashboardTemplating(list_val=_variables()),
        annotations=AnnotationContainer(list_val=_marks()), links=_links(board, runbook),
    )  # fmt: skip
    return json.dumps(dashboard, cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
