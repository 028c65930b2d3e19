"""What the dashboards are put together from: panels, rows, variables and links that look alike."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "mosec"
UIDS = {name: f"mosec-{name}" for name in ("overview", "pipeline", "node", "control-plane")}
# Of 24 columns.
WIDTH, HEIGHT = 8, 8
STAT_WIDTH, STAT_HEIGHT = 3, 4

Steps = dict[float, str]

# What states say, whatever they are states of: all is well, something begins or ends, somebody should look.
WELL, BEGINS, NEXT, ENDS, OVER, LOOK, BAD = "green", "blue", "light-blue", "purple", "#6e7687", "orange", "red"


@dataclass
class Query:
    """An expression, and what its series are called."""

    expr: str
    legend: str = ""


@dataclass
class Column:
    """A column of a table: one value for each row."""

    title: str
    expr: str
    unit: str
    steps: Steps = field(default_factory=dict)
    decimals: int | None = None


def quantile(share: float, series: str, by: str, where: str) -> str:
    """The quantile of a histogram; `by` are the labels that are kept."""
    labels = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share}, sum by ({labels}) (rate({series}_bucket{where}[$__rate_interval])))"


def quantiles(series: str, by: str, where: str, legend: str, shares: Iterable[float] = (0.5, 0.99)) -> list[Query]:
    """A line for each of several quantiles of a histogram, the median and the slowest hundredth as a rule."""
    return [Query(quantile(share, series, by, where), f"{legend} p{share * 100:g}") for share in shares]


def mean(series: str, by: str, where: str) -> str:
    """The mean of a histogram."""
    return (
        f"sum by ({by}) (rate({series}_sum{where}[$__rate_interval]))"
        f" / (sum by ({by}) (rate({series}_count{where}[$__rate_interval])) > 0)"
    )


def rate(series: str, by: str, where: str) -> str:
    return f"sum by ({by}) (rate({series}{where}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """A ratio that has no value where there is nothing to have a share of."""
    return f"({part}) / (({whole}) > 0)"


def or_zero(part: str, whole: str) -> str:
    """`part`, and 0 for what is in `whole` alone."""
    return f"({part} or 0 * {whole})"


def link_to(name: str, variable: str, label: str) -> builders.DashboardLink:
    """From a series with this label to the dashboard about what the label names."""
    return _data_link(name, variable, "${__field.labels." + label + "}")


def _data_link(name: str, variable: str, value: str) -> builders.DashboardLink:
    url = f"/d/{UIDS[name]}/?var-{variable}={value}&${{datasource:queryparam}}&${{__url_time_range}}"
    return builders.DashboardLink(f"{name}: {value}").type(dashboard.DashboardLinkType.LINK).url(url)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    steps: Steps | None = None,
    stacked: bool = False,
    links: Iterable[builders.DashboardLink] = (),
    maximum: float | None = None,
    colors: dict[str, str] | None = None,
    width: int = WIDTH,
) -> timeseries.Panel:
    """Lines over time. `steps` are thresholds, drawn as lines; `colors` are of series whose names mean something."""
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    panel = panel.height(HEIGHT).span(width).min(0).line_width(1).fill_opacity(30 if stacked else 8)
    panel = panel.show_points(common.VisibilityMode.NEVER).data_links(list(links))
    panel = panel.legend(
        common_builders.VizLegendOptions()
        .show_legend(True)
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .calcs([])
    )
    panel = panel.tooltip(
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    if maximum is not None:
        panel = panel.max(maximum)
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if steps:
        style = common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(steps)).thresholds_style(style)
    for name, color in (colors or {}).items():
        fixed = dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})
        panel = panel.override_by_name(name, [fixed])
    for place, query in enumerate(queries):
        target = _target(query.expr, place).range()
        panel = panel.with_target(target.legend_format(query.legend) if query.legend else target)
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    steps: Steps | None = None,
    words: dict[str, str] | None = None,
    name: str = "",
    decimals: int | None = None,
    links: Iterable[builders.DashboardLink] = (),
    width: int = STAT_WIDTH,
) -> stat.Panel:
    """One value as it is now. `words` are shown for values; `name` is a legend that is shown in the value's place."""
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(SOURCE)
    panel = panel.height(STAT_HEIGHT).span(width).data_links(list(links))
    panel = panel.graph_mode(common.BigValueGraphMode.NONE).color_mode(common.BigValueColorMode.VALUE)
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel = panel.thresholds(_thresholds(steps or {})).no_value("none")
    panel = panel.text_mode(common.BigValueTextMode.NAME if name else common.BigValueTextMode.VALUE)
    if words:
        results = {
            value: dashboard.ValueMappingResult(text=word, index=at) for at, (value, word) in enumerate(words.items())
        }
        panel = panel.mappings([dashboard.ValueMap(options=results)])
    if decimals is not None:
        panel = panel.decimals(decimals)
    target = _target(expr, 0).instant()
    return panel.with_target(target.legend_format(name) if name else target)


def states(title: str, description: str, query: Query, words: dict[str, tuple[str, str]], width: int = WIDTH):
    """What each thing was when: `words` are a text and a colour for each value."""
    results = {
        value: dashboard.ValueMappingResult(text=word, color=color, index=at)
        for at, (value, (word, color)) in enumerate(words.items())
    }
    panel = statetimeline.Panel().title(title).description(description).unit("none").datasource(SOURCE)
    panel = panel.height(HEIGHT).span(width).mappings([dashboard.ValueMap(options=results)])
    panel = panel.show_value(common.VisibilityMode.NEVER).merge_values(True).row_height(0.8).fill_opacity(80)
    return panel.with_target(_target(query.expr, 0).range().legend_format(query.legend))


def rows_of(
    title: str,
    description: str,
    keys: dict[str, str],
    columns: list[Column],
    *,
    link: tuple[str, str, str] | None = None,
    width: int = 24,
) -> table.Panel:
    """A table: `keys` are the labels that make a row, with titles; `link`: a dashboard, its variable, the key."""
    panel = table.Panel().title(title).description(description).unit("none").datasource(SOURCE)
    panel = panel.height(HEIGHT).span(width).no_value("-")
    hidden = {"Time": True}
    renamed = dict(keys)
    for place, column in enumerate(columns):
        panel = panel.with_target(_target(column.expr, place).instant().format(PromQueryFormat.TABLE))
        # With a single query, Grafana calls its values just so.
        value = f"Value #{_ref(place)}" if len(columns) > 1 else "Value"
        renamed[value] = column.title
        properties = [dashboard.DynamicConfigValue(id_val="unit", value=column.unit)]
        if column.decimals is not None:
            properties.append(dashboard.DynamicConfigValue(id_val="decimals", value=column.decimals))
        if column.steps:
            cell = {"type": common.TableCellDisplayMode.COLOR_TEXT.value}
            steps = _thresholds(column.steps).build()
            properties.append(dashboard.DynamicConfigValue(id_val="thresholds", value=steps))
            properties.append(dashboard.DynamicConfigValue(id_val="custom.cellOptions", value=cell))
        panel = panel.override_by_name(column.title, properties)
    if link:
        name, variable, key = link
        target = _data_link(name, variable, "${__value.raw}").build()
        panel = panel.override_by_name(keys[key], [dashboard.DynamicConfigValue(id_val="links", value=[target])])
    order = {name: at for at, name in enumerate(renamed)}
    panel = panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    options = {"excludeByName": hidden, "indexByName": order, "renameByName": renamed}
    return panel.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=options))


def variable(name: str, query: str, label: str) -> builders.QueryVariable:
    """Values of a label; several may be chosen, and all are at first."""
    made = builders.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    made = made.multi(True).include_all(True).all_value(".*")
    made = made.current(dashboard.VariableOption(text="All", value="$__all"))
    made = made.sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    return made.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)


def board(
    name: str,
    title: str,
    description: str,
    variables: list[builders.QueryVariable],
    rows: dict[str, list],
) -> dashboard.Dashboard:
    """A dashboard of rows, with links to the others."""
    made = builders.Dashboard(title).uid(UIDS[name]).description(description).tags([TAG])
    made = made.refresh("10s").time("now-30m", "now").timezone("browser").editable()
    made = made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made = made.link(
        builders.DashboardLink("mosec")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
    )
    made = made.with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for one in variables:
        made = made.with_variable(one)
    for row, panels in rows.items():
        made = made.with_row(builders.Row(row))
        for panel in panels:
            made = made.with_panel(panel)
    built = made.build()
    for one in built.templating.list_val or []:
        # Fields of variables that are intervals; Grafana's types do not have them for others.
        one.auto = one.auto_min = one.auto_count = None
    for number_of, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number_of
    return built


def _ref(place: int) -> str:
    return chr(ord("A") + place)


def _target(expr: str, place: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expr).ref_id(_ref(place)).datasource(SOURCE)


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    """Green below the first of them."""
    made = [dashboard.Threshold(color="green", value=None)]
    # A first step of -inf replaces it.
    for value, color in sorted(steps.items()):
        if value == float("-inf"):
            made = [dashboard.Threshold(color=color, value=None)]
        else:
            made.append(dashboard.Threshold(color=color, value=value))
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)
