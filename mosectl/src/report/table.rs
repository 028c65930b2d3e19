//! A [`Report`] as text: plain tables that `grep` and `awk` can read, and whole tracebacks below them.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};

use super::nodes::{health, unreachable};
use super::{NodeReport, ReplicaReport, Report, RevisionReport};
use crate::terminal::printable;

/// Longest part of an error in a table's cell.
const CELL_CHARS: usize = 72;

/// Renders everything.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    let leader = report
        .leader
        .map_or_else(|| "none".to_owned(), |leader| leader.to_string());
    let Report {
        cluster,
        version,
        term,
        ..
    } = report;
    let _ = writeln!(
        text,
        "cluster {cluster}  version {version}  leader {leader}  term {term}"
    );
    section(&mut text, pipelines(report), "no pipelines");
    section(&mut text, replicas(&report.pipelines), "");
    section(&mut text, nodes(report), "no nodes");
    unreachable(&mut text, &report.nodes);
    section(&mut text, gateways(report), "");
    section(&mut text, members(report), "");
    for revision in &report.pipelines {
        details(&mut text, revision);
    }
    text
}

fn section(text: &mut String, table: Table, empty: &str) {
    if !table.is_empty() {
        let _ = writeln!(text, "\n{}", table.trim_fmt());
    } else if !empty.is_empty() {
        let _ = writeln!(text, "\n{empty}");
    }
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn pipelines(report: &Report) -> Table {
    let mut table = table(&[
        "PIPELINE", "REVISION", "PHASE", "WEIGHT", "READY", "ROUTES", "REASON",
    ]);
    for revision in &report.pipelines {
        table.add_row([
            revision.name.clone(),
            revision.revision.to_string(),
            revision.phase.to_owned(),
            format!("{}%", revision.weight),
            revision.progress(),
            revision.routes.join(" "),
            revision.reason.as_deref().map_or_else(dash, gist),
        ]);
    }
    table
}

/// The replicas of these revisions.
pub(super) fn replicas(revisions: &[RevisionReport]) -> Table {
    let header = [
        "PIPELINE",
        "REVISION",
        "STAGE",
        "REPLICA",
        "NODE",
        "STATE",
        "PID",
        "RESTARTS",
        "LAST ERROR",
    ];
    let mut table = table(&header);
    for revision in revisions {
        for replica in &revision.replicas {
            table.add_row([
                revision.name.clone(),
                revision.revision.to_string(),
                replica.stage.clone(),
                replica.replica.to_string(),
                replica.node.clone(),
                replica.state.to_owned(),
                replica.pid.map_or_else(dash, |pid| pid.to_string()),
                replica.restarts.to_string(),
                replica.last_error.as_deref().map_or_else(dash, gist),
            ]);
        }
    }
    table
}

fn nodes(report: &Report) -> Table {
    let mut table = table(&["NODE", "HEALTH", "ADDRESS", "HEARD", "LABELS"]);
    for node in &report.nodes {
        let NodeReport {
            name,
            address,
            labels,
            silent_ms,
            ..
        } = node;
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        table.add_row([
            name.clone(),
            health(node),
            address.clone(),
            heard(*silent_ms),
            if labels.is_empty() {
                dash()
            } else {
                printable(&labels.join(" "))
            },
        ]);
    }
    table
}

fn heard(silent_ms: Option<u64>) -> String {
    silent_ms.map_or_else(dash, |millis| format!("{:.1}s ago", millis as f64 / 1000.0))
}

fn gateways(report: &Report) -> Table {
    let mut table = table(&["GATEWAY", "HEALTH", "HEARD", "BUILD"]);
    for gateway in &report.gateways {
        table.add_row([
            printable(&gateway.name),
            gateway.health.to_owned(),
            heard(Some(gateway.silent_ms)),
            printable(&gateway.build),
        ]);
    }
    table
}

fn members(report: &Report) -> Table {
    let mut table = table(&["MEMBER", "HEALTH", "ADDRESS", "HEARD", "ROLE", "LOG"]);
    for member in &report.members {
        table.add_row([
            member.id.to_string(),
            member.health.to_owned(),
            member.address.clone(),
            heard(member.silent_ms),
            if member.leader { "leader" } else { "follower" }.to_owned(),
            member.matched.map_or_else(dash, |index| index.to_string()),
        ]);
    }
    table
}

/// The whole text of what a cell can only hint at.
fn details(text: &mut String, revision: &RevisionReport) {
    let RevisionReport {
        name,
        revision: number,
        reason,
        unplaced,
        ..
    } = revision;
    if let Some(reason) = reason {
        let _ = writeln!(text, "\n{name} revision {number} failed:\n{}", indent(reason));
    }
    for line in unplaced {
        let _ = writeln!(text, "\n{name} revision {number}: {}", printable(line));
    }
    failed_starts(text, revision);
}

/// The whole errors of the replicas that cannot start.
pub(super) fn failed_starts(text: &mut String, revision: &RevisionReport) {
    let RevisionReport {
        name,
        revision: number,
        replicas,
        ..
    } = revision;
    for ReplicaReport {
        stage,
        replica,
        node,
        failed_starts,
        last_error,
        ..
    } in replicas
    {
        if let (1.., Some(error)) = (failed_starts, last_error) {
            let times = if *failed_starts == 1 {
                "once".to_owned()
            } else {
                format!("{failed_starts} times")
            };
            let _ = writeln!(
                text,
                "\n{name} revision {number}: stage {stage} replica {replica} on node {node} failed to start {times}:\n{}",
                indent(error)
            );
        }
    }
}

pub(crate) fn indent(text: &str) -> String {
    let lines: Vec<_> = printable(text)
        .trim_end()
        .lines()
        .map(|line| format!("    {line}").trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// What says most about an error in one line: the last one of a traceback, the first one of anything else.
pub(super) fn gist(error: &str) -> String {
    let mut lines = error.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = match error.contains("Traceback (most recent call last)") {
        true => lines.next_back(),
        false => lines.next(),
    };
    let line = printable(line.unwrap_or_default()).replace('\t', " ");
    if line.chars().count() <= CELL_CHARS {
        return line;
    }
    line.chars().take(CELL_CHARS - 3).chain("...".chars()).collect()
}

pub(super) fn dash() -> String {
    "-".into()
}
