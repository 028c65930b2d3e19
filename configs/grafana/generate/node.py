"""What does a node have, use and do, and what of it is short?"""

from overview import HIGH, LOW
from parts import Query, graph, link_to, number, quantiles, rate, variable
from parts import board as made

NODE = '{job="mosec-agent",instance=~"$node"}'
HERE = '{instance=~"$node"}'
STAGE = '{instance=~"$node",pipeline=~"$pipeline",stage=~"$stage"}'
# What the variable "stage" chooses from.
STAGES = '{instance=~"$node",pipeline=~"$pipeline"}'
# Links are named by the node that they lead to.
TO_HERE = '{node=~"$node"}'
BY_STAGE = "instance, pipeline, stage"
NAME = "{{instance}} {{pipeline}}/{{stage}}"
LINK = "{{instance}} to {{node}}"
TO_PIPELINE = [link_to("pipeline", "pipeline", "pipeline")]


def each(series: str) -> str:
    return f"sum by ({BY_STAGE}) ({series}{STAGE})"


def board():
    return made(
        "node",
        "mosec / Node",
        "What do a node and its workers have, use and do? What of it is short?",
        [
            variable("node", 'label_values(up{job="mosec-agent"}, instance)', "Node"),
            variable("pipeline", 'label_values(mosec_agent_workers{instance=~"$node"}, pipeline)', "Pipeline"),
            variable("stage", f"label_values(mosec_agent_workers{STAGES}, stage)", "Stage"),
        ],
        {
            "Now": NOW,
            "Workers": WORKERS,
            "Batches": BATCHES,
            "Shared memory": MEMORY,
            "Agent": AGENT,
            "Links to the node": LINKS,
            "GPUs": GPUS,
        },
    )


NOW = [
    number(
        "Lease",
        "Whether each agent holds its lease: 0 where one of them does not.",
        "none",
        f"min(mosec_agent_lease_held{HERE})",
        steps={float("-inf"): HIGH, 1: "green"},
        words={"0": "lost", "1": "held"},
    ),
    number("Workers ready", "Workers that take batches.", "none", f"sum(mosec_agent_ready_workers{HERE})"),
    number(
        "Workers not ready",
        "Workers that start, were lost or leave.",
        "none",
        f"sum(mosec_agent_workers{HERE}) - sum(mosec_agent_ready_workers{HERE})",
        steps={1: LOW},
    ),
    number("Batches", "Batches that the nodes' workers have.", "none", f"sum(mosec_agent_in_flight_batches{HERE})"),
    number(
        "Arena in use",
        "Shared memory in use, as a share of what it may grow to; of the fullest node.",
        "percentunit",
        f"max(mosec_agent_arena_used_bytes{HERE} / mosec_agent_arena_limit_bytes)",
        steps={0.7: LOW, 0.9: HIGH},
    ),
    number(
        "Open files",
        "Files and sockets that are open, as a share of the limit; of the agent with most.",
        "percentunit",
        f"max(process_open_fds{NODE} / process_max_fds)",
        steps={0.6: LOW, 0.8: HIGH},
    ),
    number(
        "Up for", "Since the agent started; of the youngest.", "s", f"min(time() - process_start_time_seconds{NODE})"
    ),
    number(
        "Certificate",
        "Time until the first certificate expires. It is renewed with a third of its lifetime left.",
        "s",
        f"min(mosec_certificate_expiry_timestamp_seconds{NODE} - time())",
        steps={float("-inf"): HIGH, 2 * 86400: LOW, 14 * 86400: "green"},
    ),
]

WORKERS = [
    graph(
        "Workers ready and placed",
        "Workers that are ready, and all that the node has, those that start or leave among them.",
        "none",
        Query(each("mosec_agent_ready_workers"), NAME + " ready"),
        Query(each("mosec_agent_workers"), NAME + " placed"),
        links=TO_PIPELINE,
    ),
    graph(
        "Worker time",
        "Time that a worker takes for a batch.",
        "s",
        *quantiles("mosec_agent_worker_seconds", BY_STAGE, STAGE, NAME),
        links=TO_PIPELINE,
    ),
    graph(
        "Worker use",
        "Share of their time that ready workers spend on batches.",
        "percentunit",
        Query(
            f"{rate('mosec_agent_worker_seconds_sum', BY_STAGE, STAGE)} / ({each('mosec_agent_ready_workers')} > 0)",
            NAME,
        ),
        steps={0.9: LOW},
        links=TO_PIPELINE,
    ),
    graph(
        "Restarts",
        "Workers that were started anew in the last ten minutes. More than three raise an alert.",
        "none",
        Query(f"sum by ({BY_STAGE}) (increase(mosec_agent_worker_restarts_total{STAGE}[10m]))", NAME),
        steps={3: HIGH},
        links=TO_PIPELINE,
    ),
    graph(
        "Batches done",
        "Batches a second that workers answered.",
        "ops",
        Query(rate("mosec_agent_worker_seconds_count", BY_STAGE, STAGE), NAME),
        links=TO_PIPELINE,
    ),
    graph(
        "Output kept",
        "What is kept of the workers' output, and how much may be.",
        "bytes",
        Query(f"mosec_agent_output_bytes{HERE}", "{{instance}}"),
        Query(f"mosec_agent_output_limit_bytes{HERE}", "{{instance}} limit"),
    ),
]

BATCHES = [
    graph(
        "Credits",
        "Batches that the agent lets its upstreams send.",
        "none",
        Query(each("mosec_agent_credits"), NAME),
        links=TO_PIPELINE,
    ),
    graph(
        "In flight",
        "Batches that workers have, in their ring or at work.",
        "none",
        Query(each("mosec_agent_in_flight_batches"), NAME),
        links=TO_PIPELINE,
    ),
    graph(
        "Backlog",
        "Batches that wait in the agent as no worker has room.",
        "none",
        Query(each("mosec_agent_backlog_batches"), NAME),
        links=TO_PIPELINE,
    ),
]

MEMORY = [
    graph(
        "Arena",
        "Shared memory of payloads: in use, allocated, and what it may grow to.",
        "bytes",
        Query(f"mosec_agent_arena_used_bytes{HERE}", "{{instance}} in use"),
        Query(f"mosec_agent_arena_bytes{HERE}", "{{instance}} allocated"),
        Query(f"mosec_agent_arena_limit_bytes{HERE}", "{{instance}} limit"),
        width=12,
    ),
    graph(
        "Arena fill",
        "In use, as a share of what it may grow to. When it is full, requests are refused with 503.",
        "percentunit",
        Query(f"mosec_agent_arena_used_bytes{HERE} / mosec_agent_arena_limit_bytes", "{{instance}}"),
        steps={0.9: HIGH},
        maximum=1,
        width=12,
    ),
]

AGENT = [
    graph(
        "CPU",
        "Processors that the agent uses, without its workers.",
        "none",
        Query(f"rate(process_cpu_seconds_total{NODE}[$__rate_interval])", "{{instance}}"),
    ),
    graph(
        "Memory",
        "Resident memory of the agent, the arena's pages that it touched among it.",
        "bytes",
        Query(f"process_resident_memory_bytes{NODE}", "{{instance}}"),
    ),
    graph(
        "Files and threads",
        "Open files and sockets, and threads, of the agent.",
        "none",
        Query(f"process_open_fds{NODE}", "{{instance}} files"),
        Query(f"process_threads{NODE}", "{{instance}} threads"),
    ),
]

LINKS = [
    graph(
        "Round trip",
        "Smoothed round-trip time of each link that is open.",
        "s",
        Query(f"mosec_link_round_trip_seconds{TO_HERE}", LINK),
        steps={0.05: LOW},
    ),
    graph(
        "Packets lost",
        "Share of the packets sent that were lost.",
        "percentunit",
        Query(
            f"rate(mosec_link_lost_packets_total{TO_HERE}[$__rate_interval])"
            f" / (rate(mosec_link_sent_packets_total{TO_HERE}[$__rate_interval]) > 0)",
            LINK,
        ),
        steps={0.02: HIGH},
    ),
    graph(
        "Sent and received",
        "Bytes a second to the node, and from it.",
        "Bps",
        Query(f"rate(mosec_link_sent_bytes_total{TO_HERE}[$__rate_interval])", LINK + " sent"),
        Query(f"rate(mosec_link_received_bytes_total{TO_HERE}[$__rate_interval])", LINK + " received"),
    ),
    graph(
        "Congestion window",
        "Bytes that may be on their way at once.",
        "bytes",
        Query(f"mosec_link_congestion_window_bytes{TO_HERE}", LINK),
    ),
    graph(
        "Datagrams a call",
        "Datagrams that one system call sends. Above 1, the kernel or the network card splits them up.",
        "none",
        Query(
            f"rate(mosec_link_sent_datagrams_total{TO_HERE}[$__rate_interval])"
            f" / (rate(mosec_link_send_calls_total{TO_HERE}[$__rate_interval]) > 0)",
            LINK,
        ),
    ),
    graph(
        "Batches in flight",
        "Batches that were sent over each link and are not answered.",
        "none",
        Query(f"mosec_link_batches_in_flight{TO_HERE}", LINK),
    ),
    graph(
        "Links opened and lost",
        "Links of each process, to whichever node, in the last ten minutes.",
        "none",
        Query("increase(mosec_link_opened_total[10m])", "{{instance}} opened"),
        Query("sum by (instance, reason) (increase(mosec_link_lost_total[10m]))", "{{instance}} lost: {{reason}}"),
        width=6,
    ),
    graph(
        "Nodes out of reach",
        "Nodes to which a process cannot open a link now.",
        "none",
        Query("mosec_dispatch_links_down", "{{instance}} ({{job}})"),
        steps={1: HIGH},
        width=6,
    ),
    graph(
        "Batches reset",
        "Batches a second that were stopped as nobody waited for them any more.",
        "ops",
        Query("rate(mosec_link_resets_total[$__rate_interval])", "{{instance}}"),
        width=6,
    ),
    graph(
        "Receive buffer",
        "Buffer of each UDP socket. The kernel's limit is net.core.rmem_max; where it is small, packets are lost.",
        "bytes",
        Query("mosec_link_receive_buffer_bytes", "{{instance}} ({{job}})"),
        width=6,
    ),
]

GPU = "{{instance}} GPU {{gpu}}"
GPUS = [
    graph(
        "GPU use",
        "Share of the time in which a kernel ran.",
        "percentunit",
        Query(f"mosec_agent_gpu_utilization_ratio{HERE}", GPU),
        maximum=1,
        width=6,
    ),
    graph(
        "GPU memory",
        "Share of the GPU's memory that is in use.",
        "percentunit",
        Query(f"mosec_agent_gpu_memory_used_bytes{HERE} / mosec_agent_gpu_memory_bytes", GPU),
        steps={0.95: LOW},
        maximum=1,
        width=6,
    ),
    graph(
        "GPU temperature",
        "Temperature of each GPU. Near its limit it slows down.",
        "celsius",
        Query(f"mosec_agent_gpu_temperature_celsius{HERE}", GPU),
        steps={85: HIGH},
        width=6,
    ),
    graph(
        "GPU power",
        "Power that each GPU draws.",
        "watt",
        Query(f"mosec_agent_gpu_power_watts{HERE}", GPU),
        width=6,
    ),
]
