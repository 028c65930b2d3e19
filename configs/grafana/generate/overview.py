"""Is the cluster well, and if not, where?"""

from parts import (
    Column,
    Query,
    graph,
    link_to,
    number,
    or_zero,
    quantile,
    quantiles,
    rate,
    rows_of,
    share,
    variable,
)
from parts import board as made

PIPELINE = '{pipeline=~"$pipeline"}'
FAILED = '{pipeline=~"$pipeline",code=~"5..|408|429"}'
REQUESTS = "mosec_gateway_requests_total"
SECONDS = "mosec_gateway_request_seconds"
FIRING = 'ALERTS{alertname=~"Mosec.+",alertstate="firing"}'
ALERT = {name: name.capitalize() for name in ("alertname", "severity", "pipeline", "stage", "instance")}
LOW, HIGH = "orange", "red"
TO_PIPELINE = link_to("pipeline", "pipeline", "pipeline")
TO_NODE = link_to("node", "node", "instance")


def failed_share(where: str = FAILED, of: str = PIPELINE, by: str = "pipeline") -> str:
    whole = rate(REQUESTS, by, of)
    return share(or_zero(rate(REQUESTS, by, where), whole), whole)


def board():
    return made(
        "overview",
        "mosec / Overview",
        "Is the cluster well? Which pipeline, node or process is not?",
        [variable("pipeline", "label_values(mosec_gateway_requests_total, pipeline)", "Pipeline")],
        {"State": STATE, "Traffic": TRAFFIC, "Capacity": CAPACITY, "Processes": PROCESSES},
    )


STATE = [
    number(
        "Leader",
        "Whether the control plane has a leader. Without one requests are served, and nothing changes.",
        "none",
        "sum(mosec_control_plane_leader)",
        steps={float("-inf"): HIGH, 1: "green"},
        words={"0": "none", "1": "yes"},
    ),
    number(
        "Processes down",
        "Processes that Prometheus does not reach.",
        "none",
        'count(up{job=~"mosec-.+"} == 0) or vector(0)',
        steps={1: HIGH},
    ),
    number(
        "Nodes up",
        "Nodes whose agents are heard.",
        "none",
        'max(mosec_control_plane_nodes{state="up"})',
        steps={float("-inf"): HIGH, 1: "green"},
    ),
    number(
        "Nodes not up",
        "Nodes whose agents are silent, and those that were given up.",
        "none",
        'sum(max by (state) (mosec_control_plane_nodes{state!="up"}))',
        steps={1: HIGH},
    ),
    number("Replicas ready", "Those that take requests.", "none", 'max(mosec_control_plane_replicas{state="ready"})'),
    number(
        "Replicas not ready",
        "Replicas that start, failed, drain or have no node.",
        "none",
        'sum(max by (state) (mosec_control_plane_replicas{state!="ready"}))',
        steps={1: LOW},
    ),
    number("Deployed", "Pipelines that are deployed.", "none", "max(mosec_control_plane_pipelines)"),
    number(
        "Alerts",
        "Alerts that fire.",
        "none",
        f"count({FIRING}) or vector(0)",
        steps={1: HIGH},
    ),
]

TRAFFIC = [
    rows_of(
        "Pipelines",
        "Each pipeline now. Its name leads to its dashboard. Workers that start or leave are placed and not ready.",
        {"pipeline": "Pipeline"},
        [
            Column("Requests", rate(REQUESTS, "pipeline", PIPELINE), "reqps", decimals=1),
            Column("Failed", failed_share(), "percentunit", {0.001: LOW, 0.01: HIGH}, decimals=2),
            Column(
                "Budget burn, 1 h",
                'mosec:gateway_error_budget:burn_rate1h{pipeline=~"$pipeline"}',
                "none",
                {1: LOW, 14.4: HIGH},
                decimals=1,
            ),
            Column("p50", quantile(0.5, SECONDS, "pipeline", PIPELINE), "s"),
            Column("p99", quantile(0.99, SECONDS, "pipeline", PIPELINE), "s"),
            Column("Queued", f"sum by (pipeline) (mosec_dispatch_queue_requests{PIPELINE})", "none"),
            Column("Workers ready", f"sum by (pipeline) (mosec_agent_ready_workers{PIPELINE})", "none"),
            Column("Workers placed", f"sum by (pipeline) (mosec_agent_workers{PIPELINE})", "none"),
        ],
        link=("pipeline", "pipeline", "pipeline"),
    ),
    graph(
        "Requests",
        "Answered requests a second, by pipeline.",
        "reqps",
        Query(rate(REQUESTS, "pipeline", PIPELINE), "{{pipeline}}"),
        links=[TO_PIPELINE],
    ),
    graph(
        "Failed requests",
        "Share of requests answered with 5xx, 408 or 429. The line is the objective's limit.",
        "percentunit",
        Query(failed_share(), "{{pipeline}}"),
        steps={0.001: HIGH},
        links=[TO_PIPELINE],
    ),
    graph(
        "Latency",
        "Arrival to answer of successful requests: half are faster (p50), one in a hundred is slower (p99).",
        "s",
        *quantiles(SECONDS, "pipeline", PIPELINE, "{{pipeline}}"),
        links=[TO_PIPELINE],
    ),
]

CAPACITY = [
    graph(
        "Queue fill",
        "Requests that wait, in the queue or at busy replicas, as a share of the stage's capacity. Beyond it a first"
        " stage refuses requests with 429, and a later one holds back the stages before it.",
        "percentunit",
        Query(
            f"sum by (pipeline, stage) (mosec_dispatch_queue_taken_requests{PIPELINE})"
            f" / (sum by (pipeline, stage) (mosec_dispatch_queue_limit_requests{PIPELINE}) > 0)",
            "{{pipeline}}/{{stage}}",
        ),
        steps={0.8: HIGH},
        maximum=1,
        links=[TO_PIPELINE],
    ),
    graph(
        "Worker use",
        "Share of their time that ready workers spend on requests. Near 100 % a stage needs more replicas.",
        "percentunit",
        Query(
            f"sum by (pipeline, stage) (rate(mosec_agent_worker_seconds_sum{PIPELINE}[$__rate_interval]))"
            f" / (sum by (pipeline, stage) (mosec_agent_ready_workers{PIPELINE}) > 0)",
            "{{pipeline}}/{{stage}}",
        ),
        steps={0.9: LOW},
        links=[TO_PIPELINE],
    ),
    graph(
        "Refused requests",
        "Requests a second that were answered before they were queued, by reason.",
        "reqps",
        Query(rate("mosec_gateway_refused_total", "pipeline, reason", PIPELINE), "{{pipeline}} {{reason}}"),
        stacked=True,
        links=[TO_PIPELINE],
    ),
]

PROCESSES = [
    graph(
        "CPU",
        "Processors that each process uses. Workers are processes of their own and not in it.",
        "none",
        Query('rate(process_cpu_seconds_total{job=~"mosec-.+"}[$__rate_interval])', "{{instance}} ({{job}})"),
        links=[TO_NODE],
    ),
    graph(
        "Memory",
        "Resident memory of each process, without its workers.",
        "bytes",
        Query('process_resident_memory_bytes{job=~"mosec-.+"}', "{{instance}} ({{job}})"),
        links=[TO_NODE],
    ),
    graph(
        "Connections",
        "Open connections of clients at each gateway.",
        "none",
        Query("mosec_gateway_connections", "{{instance}}"),
    ),
    graph(
        "Request bodies in memory",
        "What each gateway holds of requests and answers; new ones are refused at its limit.",
        "bytes",
        Query("mosec_gateway_body_bytes", "{{instance}}"),
    ),
    rows_of(
        "Builds",
        "Versions that run. More than one kind is an update in progress.",
        {"process": "Process", "version": "Version"},
        [Column("Processes", "count by (process, version) (mosec_build_info)", "none")],
        width=8,
    ),
    rows_of(
        "Alerts that fire",
        "docs/dashboards.md says what to do first about each.",
        ALERT,
        [
            Column(
                "Firing",
                f"count by ({', '.join(ALERT)}) ({FIRING})",
                "none",
            )
        ],
        width=8,
    ),
]
