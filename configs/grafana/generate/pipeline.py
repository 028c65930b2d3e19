"""What does a pipeline do for its clients, and which stage, revision or part costs time or fails?"""

from overview import FAILED, HIGH, LOW, PIPELINE, REQUESTS, SECONDS, failed_share
from parts import Query, graph, link_to, mean, number, or_zero, quantile, quantiles, rate, share, variable
from parts import board as made

STAGE = '{pipeline=~"$pipeline",stage=~"$stage"}'
# The gateway's own part has no stage.
PART = '{pipeline=~"$pipeline",stage=~"$stage|"}'
BY_STAGE = "pipeline, stage"
BY_NODE = "instance, pipeline, stage"
STAGE_NAME = "{{pipeline}}/{{stage}}"
TO_NODE = link_to("node", "node", "instance")


def total(series: str, by: str = BY_STAGE) -> str:
    return f"sum by ({by}) ({series}{STAGE})"


def part_of_mean(by: str) -> str:
    """What parts add to the mean time of a request: they are divided by requests, as not each request has each part."""
    parts = rate("mosec_gateway_part_seconds_sum", by, PART)
    # A part that each request has once, whatever stages are chosen.
    requests = rate("mosec_gateway_part_seconds_count", "pipeline", '{pipeline=~"$pipeline",part="gateway"}')
    return f"{parts} / on (pipeline) group_left () ({requests} > 0)"


def board():
    return made(
        "pipeline",
        "mosec / Pipeline",
        "What does a pipeline do for its clients? Which stage, revision or part of the way costs time or fails?",
        [
            variable("pipeline", "label_values(mosec_gateway_requests_total, pipeline)", "Pipeline"),
            variable("stage", 'label_values(mosec_dispatch_queue_requests{pipeline=~"$pipeline"}, stage)', "Stage"),
        ],
        {
            "Now": NOW,
            "Traffic": TRAFFIC,
            "Latency": LATENCY,
            "Batches": BATCHES,
            "Queue": QUEUE,
            "Workers": WORKERS,
            "Revisions side by side": REVISIONS,
        },
    )


def _all(labels: str = PIPELINE) -> str:
    return f"sum(rate({REQUESTS}{labels}[$__rate_interval]))"


NOW = [
    number("Requests", "Answered requests a second.", "reqps", _all(), decimals=1),
    number(
        "Failed",
        "Share of requests answered with 5xx, 408 or 429.",
        "percentunit",
        f"{or_zero(_all(FAILED), _all())} / ({_all()} > 0)",
        steps={0.001: LOW, 0.01: HIGH},
        decimals=2,
    ),
    number("p50", "Half of the successful requests are faster.", "s", quantile(0.5, SECONDS, "", PIPELINE)),
    number("p99", "One in a hundred successful requests is slower.", "s", quantile(0.99, SECONDS, "", PIPELINE)),
    number("Queued", "Requests in queues.", "none", f"sum(mosec_dispatch_queue_requests{STAGE})"),
    number("In flight", "Batches at replicas.", "none", f"sum(mosec_dispatch_in_flight_batches{STAGE})"),
    number(
        "Workers not ready",
        "Workers that start, were lost or leave.",
        "none",
        f"sum(mosec_agent_workers{STAGE}) - sum(mosec_agent_ready_workers{STAGE})",
        steps={1: LOW},
    ),
    number(
        "Budget burn, 1 h",
        "How many times as fast as allowed failures come; of the worst pipeline. 1 uses the budget up in 30 days.",
        "none",
        'max(mosec:gateway_error_budget:burn_rate1h{pipeline=~"$pipeline"})',
        steps={1: LOW, 14.4: HIGH},
        decimals=1,
    ),
]

TRAFFIC = [
    graph(
        "Requests by code",
        "Answered requests a second by HTTP status.",
        "reqps",
        Query(rate(REQUESTS, "pipeline, code", PIPELINE), "{{pipeline}} {{code}}"),
        stacked=True,
    ),
    graph(
        "Errors by code",
        "Answers other than 2xx a second. 4xx but 408 and 429 are the client's.",
        "reqps",
        Query(rate(REQUESTS, "pipeline, code", '{pipeline=~"$pipeline",code!~"2.."}'), "{{pipeline}} {{code}}"),
        stacked=True,
    ),
    graph(
        "Requests by route",
        "Answered requests a second by route.",
        "reqps",
        Query(rate(REQUESTS, "pipeline, route", PIPELINE), "{{pipeline}} {{route}}"),
        stacked=True,
    ),
    graph(
        "Error budget burn",
        "How many times as fast as allowed failures come, over windows. Alerts: 14.4 in 1 h, 6 in 6 h, 1 in 3 d.",
        "none",
        *(
            Query(f"mosec:gateway_error_budget:burn_rate{window}{PIPELINE}", "{{pipeline}} " + window)
            for window in ("5m", "1h", "6h", "3d")
        ),
        steps={1: LOW, 14.4: HIGH},
    ),
    graph(
        "Refused by gateways",
        "Requests a second that were answered before they were queued, by reason.",
        "reqps",
        Query(rate("mosec_gateway_refused_total", "pipeline, reason", PIPELINE), "{{pipeline}} {{reason}}"),
        stacked=True,
    ),
    graph(
        "Refused by stages",
        "Requests a second that a stage's queue did not take or gave up, by reason.",
        "reqps",
        Query(rate("mosec_dispatch_refused_total", "pipeline, stage, reason", STAGE), STAGE_NAME + " {{reason}}"),
        stacked=True,
    ),
]

LATENCY = [
    graph(
        "Latency",
        "Arrival to answer of successful requests; of a stream, to its first event.",
        "s",
        *quantiles(SECONDS, "pipeline", PIPELINE, "{{pipeline}}", (0.5, 0.9, 0.99)),
    ),
    graph(
        "Where the time goes",
        "What each part adds to the mean time of a successful request: waits for room at a replica (queue) and for the"
        " batch to fill (batch), the way there and back (link), the node agent, shared memory (shm), and the worker"
        " itself. A part that few requests have counts little.",
        "s",
        Query(part_of_mean("pipeline, part"), "{{pipeline}} {{part}}"),
        stacked=True,
    ),
    graph(
        "Where the time goes, by stage",
        "The same for each stage. Only the gateway's own part belongs to none.",
        "s",
        Query(part_of_mean("pipeline, stage, part"), STAGE_NAME + " {{part}}"),
        stacked=True,
    ),
    graph(
        "p99 by stage and part",
        "Of the requests that have the part, one in a hundred spends longer there. Parts do not add up: it is not the"
        " same request in each.",
        "s",
        Query(quantile(0.99, "mosec_gateway_part_seconds", "pipeline, stage, part", PART), STAGE_NAME + " {{part}}"),
        width=16,
    ),
    graph(
        "Share of the worker",
        "Share of a request's time in which its workers worked on it. The rest is waiting and transport.",
        "percentunit",
        Query(
            share(
                rate("mosec_gateway_part_seconds_sum", "pipeline", '{pipeline=~"$pipeline",part="worker"}'),
                rate("mosec_gateway_part_seconds_sum", "pipeline", PIPELINE),
            ),
            "{{pipeline}}",
        ),
        maximum=1,
    ),
]

BATCHES = [
    graph(
        "Batch fill",
        "Mean size of batches as a share of the stage's max_batch_size. Low: requests are few or the wait is short.",
        "percentunit",
        Query(
            f"{mean('mosec_dispatch_batch_requests', BY_STAGE, STAGE)}"
            f" / (max by ({BY_STAGE}) (mosec_dispatch_batch_limit_requests{STAGE}) > 0)",
            STAGE_NAME,
        ),
        maximum=1,
    ),
    graph(
        "Batch size",
        "Mean number of requests in a batch.",
        "none",
        Query(mean("mosec_dispatch_batch_requests", BY_STAGE, STAGE), STAGE_NAME),
    ),
    graph(
        "Batches",
        "Batches a second sent to replicas.",
        "ops",
        Query(rate("mosec_dispatch_batches_total", BY_STAGE, STAGE), STAGE_NAME),
    ),
    graph(
        "Wait for the batch to fill",
        "Time that batches waited, with a replica free for them, for more requests to come along.",
        "s",
        *quantiles("mosec_dispatch_batch_wait_seconds", BY_STAGE, STAGE, STAGE_NAME),
    ),
    graph(
        "Batches in flight",
        "Batches that were sent to replicas and are not answered.",
        "none",
        Query(total("mosec_dispatch_in_flight_batches"), STAGE_NAME),
    ),
    graph(
        "Sent again and handed over",
        "Requests a second sent to another replica as theirs was lost, by whoever sent them or within the node,"
        " and handed over to the next revision.",
        "reqps",
        Query(rate("mosec_dispatch_redispatched_total", BY_STAGE, STAGE), STAGE_NAME + " sent again"),
        Query(rate("mosec_agent_redispatched_total", BY_STAGE, STAGE), STAGE_NAME + " sent again within the node"),
        Query(rate("mosec_dispatch_handed_over_total", BY_STAGE, STAGE), STAGE_NAME + " handed over"),
    ),
]

QUEUE = [
    graph(
        "Queue",
        "Requests in the queue; what of its limit is taken, those that wait at busy replicas among it; the limit.",
        "none",
        Query(total("mosec_dispatch_queue_requests"), STAGE_NAME),
        Query(total("mosec_dispatch_queue_taken_requests"), STAGE_NAME + " taken"),
        Query(total("mosec_dispatch_queue_limit_requests"), STAGE_NAME + " limit"),
    ),
    graph(
        "Wait in the queue",
        "Time from a request's arrival in the queue to the batch that it leaves in.",
        "s",
        *quantiles("mosec_dispatch_queue_wait_seconds", BY_STAGE, STAGE, STAGE_NAME),
    ),
    graph(
        "Free credits",
        "Batches that ready replicas would take at once. At 0 requests queue.",
        "none",
        Query(total("mosec_dispatch_credits"), STAGE_NAME),
    ),
]

WORKERS = [
    graph(
        "Workers ready and placed",
        "Workers that are ready, and all that nodes have, those that start or leave among them.",
        "none",
        Query(total("mosec_agent_ready_workers"), STAGE_NAME + " ready"),
        Query(total("mosec_agent_workers"), STAGE_NAME + " placed"),
    ),
    graph(
        "Worker time",
        "Time that a worker takes for a batch.",
        "s",
        *quantiles("mosec_agent_worker_seconds", BY_STAGE, STAGE, STAGE_NAME),
    ),
    graph(
        "Worker use",
        "Share of their time that ready workers spend on batches. Near 100 % the stage needs more replicas.",
        "percentunit",
        Query(
            f"{rate('mosec_agent_worker_seconds_sum', BY_STAGE, STAGE)} / ({total('mosec_agent_ready_workers')} > 0)",
            STAGE_NAME,
        ),
        steps={0.9: LOW},
    ),
    graph(
        "Worker time by node",
        "p99 of each node's workers: one slow node or GPU stands out.",
        "s",
        Query(quantile(0.99, "mosec_agent_worker_seconds", BY_NODE, STAGE), "{{instance}} " + STAGE_NAME),
        links=[TO_NODE],
    ),
    graph(
        "Restarts",
        "Workers that were started anew, a minute.",
        "none",
        Query(
            f"60 * {rate('mosec_agent_worker_restarts_total', BY_NODE, STAGE)}",
            "{{instance}} " + STAGE_NAME,
        ),
        links=[TO_NODE],
    ),
    graph(
        "Backlog",
        "Batches that agents have taken and no worker has room for.",
        "none",
        Query(total("mosec_agent_backlog_batches"), STAGE_NAME),
    ),
]

REVISION = "pipeline, revision"
REVISION_NAME = "{{pipeline}} {{revision}}"
REVISIONS = [
    graph(
        "Requests by revision",
        "Answered requests a second: a canary's share, and one revision taking over from another.",
        "reqps",
        Query(rate(REQUESTS, REVISION, PIPELINE), REVISION_NAME),
        stacked=True,
    ),
    graph(
        "Failed requests by revision",
        "Share of each revision's requests answered with 5xx, 408 or 429.",
        "percentunit",
        Query(failed_share(by=REVISION), REVISION_NAME),
        steps={0.001: HIGH},
    ),
    graph(
        "Latency by revision",
        "Arrival to answer of each revision's successful requests.",
        "s",
        *quantiles(SECONDS, REVISION, PIPELINE, REVISION_NAME),
    ),
]
