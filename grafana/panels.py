"""Panels of one look: what each shows, in which unit, from which expressions, and from which values on it is yellow or red.

The structures are Grafana's own, generated from its schemas: a field that Grafana does not know cannot be written here.
"""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.models import common, heatmap, stat, statetimeline, table
from grafana_foundation_sdk.models.dashboard import (
    DashboardFieldConfigSourceOverrides,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColor,
    FieldColorModeId,
    FieldConfig,
    FieldConfigSource,
    GridPos,
    MatcherConfig,
    Panel,
    Threshold,
    ThresholdsConfig,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import Dataquery, PromQueryFormat

from grafana.promql import Query
from grafana.rules import Runbook

DATASOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

Step = tuple[float | None, str]  # a colour and the value from which on it holds; None for what is below all others
Words = dict[int, tuple[str, str]]  # values that stand for states: a text and a colour for each
Steps = tuple[Step, ...]

ANY: Final[Steps] = ((None, BLUE),)  # a number that is neither good nor bad
NONE_IS_GOOD: Final[Steps] = ((None, GREEN), (1, RED))
SOME_IS_GOOD: Final[Steps] = ((None, RED), (1, GREEN))


def _targets(queries: tuple[Query, ...], *, instant: bool, form: PromQueryFormat) -> list[Dataquery]:
    return [
        Dataquery(
            expr=query.expression, legend_format=query.legend or "__auto", ref_id=letter, datasource=DATASOURCE,
            instant=instant, range_val=not instant, format_val=form,
        )
        for letter, query in zip("ABCDEFGH", queries, strict=False)
    ]  # fmt: skip


def _field(unit: str, steps: Steps = (), words: Words | None = None) -> FieldConfig:
    """Return how values are written and coloured: by thresholds where there are any, else a colour for each series."""
    field = FieldConfig(unit=unit)
    if steps:
        field.thresholds = ThresholdsConfig(
            mode=ThresholdsMode.ABSOLUTE, steps=[Threshold(value=value, color=colour) for value, colour in steps]
        )
    if words:
        results = {
            str(value): ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(words.items())
        }
        field.mappings = [ValueMap(options=results)]
    return field


def _panel(
    kind: str, title: str, description: str, field: FieldConfig, options: object, queries: tuple[Query, ...],
    *, width: int, height: int, instant: bool = False, form: PromQueryFormat = PromQueryFormat.TIME_SERIES,
) -> Panel:  # fmt: skip
    return Panel(
        type_val=kind, title=title, description=description, datasource=DATASOURCE, options=options,
        field_config=FieldConfigSource(defaults=field, overrides=[]), grid_pos=GridPos(h=height, w=width),
        targets=list(_targets(queries, instant=instant, form=form)),
    )  # fmt: skip


def explained_by_name(panel: Panel, runbook: Runbook) -> Panel:
    """Link each series that is called like an alert to its part of the runbook."""
    assert panel.field_config is not None
    panel.field_config.overrides = [
        _override(name, "links", [{"title": f"Runbook: {name}", "url": url, "targetBlank": True}])
        for name, url in runbook.parts.items()
    ]
    return panel


def _override(name: str, setting: str, value: object) -> DashboardFieldConfigSourceOverrides:
    return DashboardFieldConfigSourceOverrides(
        matcher=MatcherConfig("byName", name), properties=[DynamicConfigValue(setting, value)]
    )


def lines(
    title: str, description: str, unit: str, *queries: Query,
    width: int = 8, height: int = 8, stacked: bool = False, steps: Steps = (), top: float | None = None,
) -> Panel:  # fmt: skip
    """Return lines over time, or areas one upon the other, from 0. Thresholds are dashed lines across."""
    field = _field(unit, steps)
    field.color = FieldColor(mode=FieldColorModeId.PALETTE_CLASSIC)
    field.min_val, field.max_val = 0, top
    dashed, off = common.GraphThresholdsStyleMode.DASHED, common.GraphThresholdsStyleMode.OFF
    field.custom = common.GraphFieldConfig(
        draw_style=common.GraphDrawStyle.LINE, line_width=1, fill_opacity=35 if stacked else 6,
        show_points=common.VisibilityMode.NEVER,
        thresholds_style=common.GraphThresholdsStyleConfig(dashed if steps else off),
        stacking=common.StackingConfig(common.StackingMode.NORMAL if stacked else common.StackingMode.NONE, "A"),
    )  # fmt: skip
    options = {
        "legend": common.VizLegendOptions(
            display_mode=common.LegendDisplayMode.LIST, placement=common.LegendPlacement.BOTTOM, show_legend=True, calcs=[]
        ),
        "tooltip": common.VizTooltipOptions(mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING),
    }
    return _panel("timeseries", title, description, field, options, queries, width=width, height=height)


def number(
    title: str, description: str, unit: str, *queries: Query,
    steps: Steps = ANY, words: Words | None = None, names: bool = False, width: int = 4, height: int = 4,
) -> Panel:  # fmt: skip
    """Return the last value as a large number over a line of its past.

    steps   colours by value
    words   texts that stand for single values
    names   the names of the series are shown, not their values
    """
    field = _field(unit, steps, words)
    field.color = FieldColor(mode=FieldColorModeId.THRESHOLDS)
    options = stat.Options(
        graph_mode=common.BigValueGraphMode.NONE if names or words else common.BigValueGraphMode.AREA,
        color_mode=common.BigValueColorMode.VALUE,
        text_mode=common.BigValueTextMode.NAME if names else common.BigValueTextMode.VALUE,
        reduce_options=common.ReduceDataOptions(values=False, calcs=["lastNotNull"], fields=""),
    )
    return _panel("stat", title, description, field, options, queries, width=width, height=height)


def states(
    title: str, description: str, words: Words, *queries: Query, unit: str = "short", width: int = 12, height: int = 8
) -> Panel:
    """Return a bar over time for each series, coloured by the state it is in."""
    field = _field(unit, words=words)
    field.color = FieldColor(mode=FieldColorModeId.THRESHOLDS)
    field.custom = statetimeline.FieldConfig(line_width=0, fill_opacity=75)
    options = statetimeline.Options(
        show_value=common.VisibilityMode.NEVER, merge_values=True, align_value=common.TimelineValueAlignment.LEFT,
        legend=common.VizLegendOptions(show_legend=True), tooltip=common.VizTooltipOptions(),
    )  # fmt: skip
    return _panel("state-timeline", title, description, field, options, queries, width=width, height=height)


def heat(title: str, description: str, unit: str, buckets: str, *, width: int = 12, height: int = 8) -> Panel:
    """Return how often each bucket of a histogram was hit, over time. `buckets` is a rate by `le`."""
    options = heatmap.Options(
        calculate=False, cell_gap=1, legend=heatmap.HeatmapLegend(show=True),
        color=heatmap.HeatmapColorOptions(
            mode=heatmap.HeatmapColorMode.SCHEME, scheme="Oranges", scale=heatmap.HeatmapColorScale.EXPONENTIAL,
            exponent=0.5, steps=64, fill="dark-orange",
        ),
        rows_frame=heatmap.RowsHeatmapOptions(layout=common.HeatmapCellLayout.AUTO),
        y_axis=heatmap.YAxisConfig(unit=unit, axis_placement=common.AxisPlacement.LEFT),
        tooltip=heatmap.HeatmapTooltip(mode=common.TooltipDisplayMode.SINGLE, y_histogram=True, show_color_scale=True),
    )  # fmt: skip
    field = _field(unit)
    field.custom = heatmap.FieldConfig(scale_distribution=common.ScaleDistributionConfig(common.ScaleDistribution.LINEAR))
    return _panel(
        "heatmap", title, description, field, options, (Query(buckets, "{{le}}"),),
        width=width, height=height, form=PromQueryFormat.HEATMAP,
    )  # fmt: skip


def rows(
    title: str, description: str, unit: str, query: Query, columns: dict[str, str], *,
    value: str, width: int = 12, height: int = 8,
) -> Panel:  # fmt: skip
    """Return a table with a row for each series as it is now.

    columns  labels to show, in this order, and the titles of their columns; no other label is shown
    value    title of the column of values, which has the unit
    """
    options = table.Options(
        show_header=True, sort_by=[common.TableSortByFieldState(display_name=next(iter(columns.values())))]
    )
    field = _field("short")
    field.custom = common.TableFieldOptions(align=common.FieldTextAlignment.AUTO, filterable=True)
    panel = _panel(
        "table", title, description, field, options, (query,),
        width=width, height=height, instant=True, form=PromQueryFormat.TABLE,
    )  # fmt: skip
    order = [*columns, "Value"]
    panel.transformations = [
        DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"names": order}}),
        DataTransformerConfig(
            id_val="organize",
            options={
                "indexByName": {name: place for place, name in enumerate(order)},
                "renameByName": columns | {"Value": value},
            },
        ),
    ]
    assert panel.field_config is not None
    panel.field_config.overrides = [_override(value, "unit", unit)]
    return panel
