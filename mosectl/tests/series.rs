//! `docs/metrics.md` is what the processes' code says of their series. Written with `MOSEC_WRITE_DOCS=1`.
#![allow(clippy::unwrap_used)] // helpers of tests are not seen as tests

use std::fmt::Write as _;

use mosec_telemetry::Described;

/// A process, what is to be known of its page, and its families.
struct Process {
    name: &'static str,
    text: &'static str,
    described: fn() -> prometheus::Result<Vec<Described>>,
}

const PROCESSES: [Process; 4] = [
    Process {
        name: "Every process",
        text: "`process` is `gateway`, `agent`, `control-plane` or, of `python server.py`, `server`; that has no certificate.",
        described: mosec_telemetry::described_process,
    },
    Process {
        name: "Gateway",
        text: "On the port of its clients, under `/metrics`. `mosec_dispatch_*` are of the first stages, whose queues are here. \
           Of later stages, which agents send on to, the part `queue` has `batch` in it: the agents' \
           `mosec_dispatch_batch_wait_seconds` has it apart.",
        described: mosec_gateway::described_series,
    },
    Process {
        name: "Node agent",
        text: "Where `--admin` says. `mosec_dispatch_*` are of the later stages, to which the workers here send on.",
        described: mosec_node_agent::described_series,
    },
    Process {
        name: "Control plane",
        text: "Where `--admin` of each member says. What only the leader knows is shown by the leader alone.",
        described: mosec_control_plane::described_series,
    },
];

const HEAD: &str = "\
# Series

What each process tells on its `/metrics`. This page is written from the code: `MOSEC_WRITE_DOCS=1 cargo test -p mosectl --test series`.

Families without a series are left out of a scrape, as MOSEC does. Labels are bounded: `pipeline`, `revision`, `stage` and `route` are those
that are deployed, and their series go when the last revision that has them does; `node` is one to which a link is open; `reason` and
`code` are of tables in the code. The prefix `mosec_service` is `--namespace`, and those series are MOSEC's, as
[http.md](http.md#series) says; `mosec_service_throughput_total` keeps an `endpoint` that is no longer deployed until its gateway ends.
";

const TAIL: &str = "
## Embedded server

`python server.py` has the series of a gateway and of an agent on one page. Its pipeline is `local`, and its revision 1.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    for process in PROCESSES {
        write!(page, "\n## {}\n\n{}\n\n", process.name, process.text).unwrap();
        page.push_str("| Name | Kind | Labels | Meaning |\n|---|---|---|---|\n");
        for Described {
            name,
            kind,
            help,
            labels,
        } in families(&process)
        {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            let (kind, labels) = (kind.name(), labels.join(", "));
            writeln!(page, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
    }
    page + TAIL
}

/// Each once, though parts of the process may have registered some of its series each.
fn families(process: &Process) -> Vec<Described> {
    let mut families = (process.described)().unwrap();
    families.sort_by(|one, other| one.name.cmp(&other.name));
    families.dedup_by(|one, other| one.name == other.name);
    families
}

#[test]
fn the_documents_table_is_the_codes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    if std::env::var_os("MOSEC_WRITE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == page(),
        "docs/metrics.md is not what the code says: run `MOSEC_WRITE_DOCS=1 cargo test -p mosectl --test series`"
    );
}

#[test]
fn every_family_of_ours_says_what_it_is_in_sentences() {
    // MOSEC's texts are as they are.
    let is_ours = |family: &Described| !family.name.starts_with("mosec_service_");
    for family in PROCESSES.iter().flat_map(families).filter(is_ours) {
        let Described { name, help, .. } = family;
        let starts = help.starts_with(|first: char| first.is_uppercase());
        assert!(starts && help.ends_with('.'), "{name}: {help}");
        assert!(!help.contains(['|', '\n']), "{name}: {help}");
    }
}
