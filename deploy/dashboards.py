"""Write june's Grafana dashboards, deploy/grafana/dashboards/*.json: `python -m deploy.dashboards`.

In Python a panel is one line. A test compares the files with this module, and the metrics named here with
those that june exposes. Grafana loads the files when it starts (see compose.yaml).
"""

import json

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, StackingMode, VisibilityMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from june.sections import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "deploy" / "grafana" / "dashboards"
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")
"""As deploy/grafana/provisioning/datasources names it."""
WIDTH = 24
HEIGHT = 8

Panel = timeseries.Panel | stat.Panel | heatmap.Panel
Queries = dict[str, str]
"""Expressions by their legend."""


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Return a counter's increase per second, summed over all labels but `by`."""
    grouping = f" by ({by})" if by else ""
    chosen = f"{{{where}}}" if where else ""
    return f"sum{grouping} (rate({metric}{chosen}[$__rate_interval]))"


def per_minute(metric: str, by: str = "", where: str = "") -> str:
    """Return the increase per minute, for events that are rare."""
    return f"60 * {rate(metric, by, where)}"


def quantile(q: float, metric: str, by: str = "", where: str = "") -> str:
    """Return a quantile of a histogram, for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', labels, where)})"


def mean(metric: str, by: str = "") -> str:
    """Return the mean of what a histogram observed, for each value of the label `by`."""
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def percentiles(metric: str) -> Queries:
    """Return the median, the 95th and the 99th percentile of a histogram."""
    return {f"p{q * 100:g}": quantile(q, metric) for q in (0.5, 0.95, 0.99)}


def _query(number: int, legend: str, expression: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(PROMETHEUS).expr(expression).legend_format(legend)
    return query.ref_id(chr(ord("A") + number)).range().exemplar(exemplar=True)


def figure(title: str, expression: str, unit: str = "short", tells: str = "") -> stat.Panel:
    """Return a panel with one number, in front of its course over time."""
    panel = stat.Panel().title(title).description(tells).datasource(PROMETHEUS).unit(unit)
    panel = panel.graph_mode(BigValueGraphMode.AREA).span(WIDTH // 6).height(HEIGHT // 2)
    return panel.with_target(_query(0, title, expression))


def course(
    title: str, queries: Queries, unit: str = "short", tells: str = "", *, is_stacked: bool = False
) -> timeseries.Panel:
    """Return a panel with lines over time, or stacked areas; points link to their traces."""
    panel = timeseries.Panel().title(title).description(tells).datasource(PROMETHEUS).unit(unit).min(0)
    panel = panel.span(WIDTH // 2).height(HEIGHT).show_points(VisibilityMode.NEVER)
    if is_stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    for number, (legend, expression) in enumerate(queries.items()):
        panel = panel.with_target(_query(number, legend, expression))
    return panel


def spread(title: str, metric: str, unit: str = "s", tells: str = "") -> heatmap.Panel:
    """Return a panel that shows how often a histogram saw which values, over time."""
    panel = heatmap.Panel().title(title).description(tells).datasource(PROMETHEUS).unit(unit)
    query = _query(0, "{{le}}", rate(f"{metric}_bucket", "le")).format(PromQueryFormat.HEATMAP)
    return panel.span(WIDTH // 2).height(HEIGHT).with_target(query)


TURN = "june_voice_turn_duration_seconds"
STAGE = "june_stage_duration_seconds"
LAG = "june_event_loop_lag_seconds"
FAILED = 'outcome!="ok"'


def overview() -> list[Panel]:
    """Is june well, how busy is it, and how fast?"""
    return [
        figure("Apps connected", "sum(june_adapter_up)", tells="Of the chat apps whose token is set."),
        figure("Models ready", "sum(june_model_loaded)", tells="Whisper, language model and voice: three."),
        figure("Voice turn, p95", quantile(0.95, TURN), "s", "From a recording to its answer."),
        figure("Messages waiting", 'sum(june_queue_messages{status="new"})'),
        figure("Errors a minute", per_minute("june_errors_total")),
        figure("Disk free", "min(june_disk_free_bytes)", "bytes", "Where the file of messages lies."),
        course(
            "Messages a minute",
            {"{{platform}}, {{kind}}": per_minute("june_messages_total", "platform, kind")},
        ),
        course("Voice turns", percentiles(TURN), "s"),
        course("Tokens a second", {"{{direction}}": rate("june_llm_tokens_total", "direction")}),
        course(
            "Seconds of audio a second",
            {"{{direction}}": rate("june_audio_seconds_total", "direction")},
            tells="Heard (in) and spoken (out).",
        ),
        course("Who wrote", {"{{sender}}": per_minute("june_messages_total", "sender")}, is_stacked=True),
        course("At work", {"{{stage}}": "sum by (stage) (june_inflight)"}, is_stacked=True),
        course("Event loop, lag", percentiles(LAG), "s", "Above 0.1 s every chat feels it."),
        course("Versions", {"{{version}}": "sum by (version) (june_build_info)"}, is_stacked=True),
    ]


def voice_turn() -> list[Panel]:
    """Where the time of one voice turn goes."""
    return [
        course("Whole turn", percentiles(TURN), "s"),
        spread("Whole turn, spread", TURN),
        course("Stages, mean", {"{{stage}}": mean(STAGE, "stage")}, "s", is_stacked=True),
        course("Stages, p95", {"{{stage}}": quantile(0.95, STAGE, "stage")}, "s"),
        course("Waiting for its turn", percentiles("june_queue_wait_seconds"), "s"),
        course("First token after", percentiles("june_llm_time_to_first_token_seconds"), "s"),
        course("First sound after", percentiles("june_tts_time_to_first_audio_seconds"), "s"),
        course(
            "Turns a minute",
            {"{{platform}}, {{outcome}}": per_minute(f"{TURN}_count", "platform, outcome")},
        ),
    ]


def engine() -> list[Panel]:
    """What the language model's engine does."""
    sources = {"{{source}}": rate("june_llm_prompt_tokens_total", "source")}
    return [
        figure("Answers being written", "sum(june_llm_running)"),
        figure("Answers waiting", "sum(june_llm_waiting)"),
        figure("Cache used", "sum(june_llm_kv_used_tokens) / sum(june_llm_kv_tokens)", "percentunit"),
        figure(
            "Tokens a second, one answer", quantile(0.5, "june_llm_tokens_per_second"), tells="The median."
        ),
        figure("Tokens a batch", mean("june_llm_batch_tokens"), tells="The mean of all steps."),
        figure("Step, p95", quantile(0.95, "june_llm_step_seconds"), "s"),
        course(
            "Answers",
            {"running": "sum(june_llm_running)", "waiting": "sum(june_llm_waiting)"},
            is_stacked=True,
        ),
        course(
            "Cache, tokens",
            {"used": "sum(june_llm_kv_used_tokens)", "in all": "sum(june_llm_kv_tokens)"},
        ),
        course("Steps", percentiles("june_llm_step_seconds"), "s", "One batch through the model."),
        spread("Tokens a batch, spread", "june_llm_batch_tokens", "short"),
        course("Waiting for a slot", percentiles("june_llm_queue_wait_seconds"), "s"),
        course("Prompt tokens a second", sources, tells="Reused ones cost nothing.", is_stacked=True),
        course("Tokens a second, one answer", percentiles("june_llm_tokens_per_second")),
        course(
            "Evicted and cancelled, a minute",
            {
                "evicted": per_minute("june_llm_evictions_total"),
                "cancelled": per_minute("june_llm_cancelled_total"),
            },
        ),
    ]


def queue() -> list[Panel]:
    """What waits, and for how long."""
    return [
        course(
            "Messages by status", {"{{status}}": "sum by (status) (june_queue_messages)"}, is_stacked=True
        ),
        course("Age of the oldest new one", {"age": "max(june_queue_oldest_new_age_seconds)"}, "s"),
        course("Waiting for its turn", percentiles("june_queue_wait_seconds"), "s"),
        spread("Waiting for its turn, spread", "june_queue_wait_seconds"),
        course("Received a minute", {"{{platform}}": per_minute("june_messages_total", "platform")}),
        course("Not accepted, a minute", {"{{reason}}": per_minute("june_dropped_total", "reason")}),
        course("At work", {"{{stage}}": "sum by (stage) (june_inflight)"}, is_stacked=True),
        course("Sending, p95", {"{{outcome}}": quantile(0.95, STAGE, "outcome", 'stage="send"')}, "s"),
    ]


def errors() -> list[Panel]:
    """What fails, where, and of what kind."""
    return [
        figure("Errors a minute", per_minute("june_errors_total")),
        figure(
            "Turns failed", f"{rate(f'{TURN}_count', where=FAILED)} / {rate(f'{TURN}_count')}", "percentunit"
        ),
        figure("Not accepted, a minute", per_minute("june_dropped_total")),
        figure("Apps connected", "sum(june_adapter_up)"),
        figure("Event loop, lag, p99", quantile(0.99, LAG), "s"),
        figure("Disk free", "min(june_disk_free_bytes)", "bytes"),
        course(
            "Errors a minute",
            {"{{stage}}, {{type}}": per_minute("june_errors_total", "stage, type")},
            is_stacked=True,
        ),
        course("Turns a minute that failed", {"{{outcome}}": per_minute(f"{TURN}_count", "outcome", FAILED)}),
        course(
            "Stages a minute that failed",
            {"{{stage}}, {{outcome}}": per_minute(f"{STAGE}_count", "stage, outcome", FAILED)},
        ),
        course("Not accepted, a minute", {"{{reason}}": per_minute("june_dropped_total", "reason")}),
        course("Connected", {"{{platform}}": "min by (platform) (june_adapter_up)"}),
        spread("Event loop, lag", LAG),
    ]


PAGES = {
    "overview": ("Overview", overview),
    "voice-turn": ("One voice turn, by stage", voice_turn),
    "engine": ("Language model", engine),
    "queue": ("Queue", queue),
    "errors": ("Errors", errors),
}


def render(name: str) -> str:
    """Return the JSON of one dashboard of `PAGES`, as its file holds it."""
    title, panels = PAGES[name]
    page = dashboard.Dashboard(f"june: {title}").uid(f"june-{name}").description(panels.__doc__ or "")
    page = page.tags(["june"]).refresh("30s").time("now-3h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    page = page.link(
        dashboard.DashboardLink("june")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["june"])
        .keep_time(keep_time=True)
    )
    for panel in panels():
        page = page.with_panel(panel)
    return json.dumps(json.loads(JSONEncoder().encode(page.build())), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in PAGES:
        (FOLDER / f"{each}.json").write_text(render(each), encoding="utf-8")
