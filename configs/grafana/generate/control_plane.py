"""Does the control plane lead, keep up and do what it is told?"""

from overview import HIGH, LOW
from parts import BAD, BEGINS, ENDS, LOOK, NEXT, OVER, WELL, Query, graph, number, states, variable
from parts import board as made

MEMBER = '{instance=~"$member"}'
PROCESS = '{job="mosec-control-plane",instance=~"$member"}'
PREFIX = "mosec_control_plane_"


def of_leader(series: str, by: str) -> str:
    """What the leader alone counts; the others have 0 or nothing."""
    return f"max by ({by}) ({PREFIX}{series})"


def board():
    return made(
        "control-plane",
        "mosec / Control plane",
        "Does the control plane lead, keep up, and do what it is told?",
        [variable("member", "label_values(mosec_control_plane_term, instance)", "Member")],
        {
            "Now": NOW,
            "Leader": LEADER,
            "Log and store": LOG,
            "What it manages": MANAGED,
            "Who is connected": CLIENTS,
            "Processes and certificates": PROCESSES,
        },
    )


NOW = [
    number(
        "Leader now",
        "The member that leads.",
        "none",
        f"{PREFIX}leader == 1",
        name="{{instance}}",
    ),
    number(
        "Members up",
        "Members that Prometheus reaches. A majority has to be there.",
        "none",
        'sum(up{job="mosec-control-plane"})',
    ),
    number("Members", "Members that the log knows.", "none", f"max({PREFIX}members)"),
    number(
        "May be lost",
        "Members that may still be lost before there is no majority.",
        "none",
        f'sum(up{{job="mosec-control-plane"}}) - floor(max({PREFIX}members) / 2) - 1',
        steps={float("-inf"): HIGH, 0: LOW, 1: "green"},
    ),
    number("Latest term", "It grows with each election.", "none", f"max({PREFIX}term)"),
    number("Largest store", "The largest log store.", "bytes", f"max({PREFIX}store_bytes)"),
    number(
        "Nodes fell silent",
        "Times in the last hour that a node was not heard for three seconds. Not all of them were given up.",
        "none",
        f"sum(increase({PREFIX}leases_lost_total[1h]))",
        steps={1: LOW},
        decimals=0,
    ),
    number(
        "First certificate",
        "Time until the first certificate of any process expires. It is renewed with a third of its lifetime left.",
        "s",
        "min(mosec_certificate_expiry_timestamp_seconds - time())",
        steps={float("-inf"): HIGH, 2 * 86400: LOW, 14 * 86400: "green"},
    ),
]

LEADER = [
    states(
        "Who leads",
        "Which member led when.",
        Query(f"{PREFIX}leader{MEMBER}", "{{instance}}"),
        {"0": ("follows", "#3d4451"), "1": ("leads", "green")},
    ),
    states(
        "Who knows a leader",
        "Whether each member has heard of a leader lately. One that has not is cut off.",
        Query(f"{PREFIX}leader_known{MEMBER}", "{{instance}}"),
        {"0": ("none", "red"), "1": ("known", "green")},
    ),
    graph("Term", "It grows with each election.", "none", Query(f"{PREFIX}term{MEMBER}", "{{instance}}")),
]

LOG = [
    graph(
        "Entries",
        "Entries a second that are written to each member's log.",
        "ops",
        # An index is a gauge, which `rate` is not for; it starts anew with a member's disk.
        Query(f"clamp_min(deriv({PREFIX}last_log_index{MEMBER}[$__rate_interval]), 0)", "{{instance}}"),
    ),
    graph(
        "Entries not applied",
        "Entries in a member's log that its state does not reflect yet.",
        "none",
        Query(f"{PREFIX}apply_lag_entries{MEMBER}", "{{instance}}"),
        steps={1000: HIGH},
    ),
    graph(
        "Entries not replicated",
        "Entries that the leader has and a member has not.",
        "none",
        Query(of_leader("replication_lag_entries", "member"), "member {{member}}"),
        steps={1000: HIGH},
    ),
    graph(
        "Entries since the snapshot",
        "What a member reads anew when it starts. It falls back with each snapshot.",
        "none",
        Query(f"{PREFIX}last_applied_index{MEMBER} - {PREFIX}snapshot_index", "{{instance}}"),
    ),
    graph(
        "Store",
        "Size of each member's log store on disk.",
        "bytes",
        Query(f"{PREFIX}store_bytes{MEMBER}", "{{instance}}"),
    ),
]

MANAGED = [
    graph(
        "Nodes",
        "Nodes by state: suspect ones are silent, those that are down were given up.",
        "none",
        Query(of_leader("nodes", "state"), "{{state}}"),
        stacked=True,
        colors={"up": WELL, "suspect": LOOK, "down": BAD},
    ),
    graph(
        "Replicas",
        "Replicas by state.",
        "none",
        Query(of_leader("replicas", "state"), "{{state}}"),
        stacked=True,
        colors={
            "ready": WELL,
            "placed": NEXT,
            "starting": BEGINS,
            "draining": ENDS,
            "stopped": OVER,
            "unknown": LOOK,
            "unplaced": LOOK,
            "back-off": BAD,
        },
    ),
    graph("Pipelines", "Pipelines that are deployed.", "none", Query(f"max({PREFIX}pipelines)", "pipelines")),
    graph(
        "Rollouts",
        "Pipelines by the state of their rollout.",
        "none",
        Query(of_leader("rollouts", "state"), "{{state}}"),
        stacked=True,
        colors={
            "serving": WELL,
            "starting": BEGINS,
            "canary": "yellow",
            "rolling": NEXT,
            "retiring": ENDS,
            "failed": BAD,
        },
    ),
    graph(
        "Rollouts finished",
        "Rollouts that ended in the last hour, by outcome.",
        "none",
        Query(f"sum by (outcome) (increase({PREFIX}rollouts_finished_total[1h]))", "{{outcome}}"),
        stacked=True,
        colors={"promoted": WELL, "superseded": LOOK, "deleted": OVER, "reverted": BAD},
    ),
]

CLIENTS = [
    graph(
        "Leases",
        "Nodes whose leases the leader keeps.",
        "none",
        Query(f"max({PREFIX}leases)", "leases"),
    ),
    graph(
        "Watches",
        "Gateways and agents that follow the topology at each member.",
        "none",
        Query(f"{PREFIX}watch_clients{MEMBER}", "{{instance}}"),
        stacked=True,
    ),
    graph(
        "Readers of output",
        "People who read the output of workers by way of each member.",
        "none",
        Query(f"{PREFIX}log_readers{MEMBER}", "{{instance}}"),
        stacked=True,
    ),
]

PROCESSES = [
    graph(
        "CPU",
        "Processors that each member uses.",
        "none",
        Query(f"rate(process_cpu_seconds_total{PROCESS}[$__rate_interval])", "{{instance}}"),
    ),
    graph(
        "Memory",
        "Resident memory of each member.",
        "bytes",
        Query(f"process_resident_memory_bytes{PROCESS}", "{{instance}}"),
    ),
    graph(
        "Certificates",
        "Time until each process's certificate expires, members, gateways and agents alike.",
        "s",
        Query("mosec_certificate_expiry_timestamp_seconds - time()", "{{instance}} ({{job}})"),
        steps={14 * 86400: HIGH},
    ),
]
