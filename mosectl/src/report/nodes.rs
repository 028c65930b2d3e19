//! The nodes as `mosectl node list` gives them.

use std::fmt::Write as _;

use super::table::{dash, table};
use super::{NodeReport, UnreachableReport};
use crate::terminal::printable;

/// As a table.
pub(crate) fn render(nodes: &[NodeReport]) -> String {
    if nodes.is_empty() {
        return "no nodes\n".into();
    }
    let mut table = table(&[
        "NODE", "HEALTH", "REPLICAS", "GPUS", "CPUS", "MEMORY", "BUILD", "ADDRESS", "LABELS",
    ]);
    for node in nodes {
        let labels: Vec<_> = node
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        table.add_row([
            node.name.clone(),
            health(node),
            node.replicas.to_string(),
            gpus(&node.gpus),
            if node.cpus > 0.0 {
                node.cpus.to_string()
            } else {
                dash()
            },
            if node.memory > 0 {
                format!("{:.1}GiB", node.memory as f64 / (1u64 << 30) as f64)
            } else {
                dash()
            },
            node.build.as_deref().map_or_else(dash, printable),
            node.address.clone(),
            if labels.is_empty() {
                dash()
            } else {
                printable(&labels.join(" "))
            },
        ]);
    }
    let mut text = format!("{}\n", table.trim_fmt());
    unreachable(&mut text, nodes);
    text
}

/// From where nodes cannot be reached, if there are any, one line each.
pub(super) fn unreachable(text: &mut String, nodes: &[NodeReport]) {
    let mut lines = Vec::new();
    for node in nodes {
        lines.extend(node.unreachable.iter().map(UnreachableReport::to_line));
        let named = u32::try_from(node.unreachable.len()).unwrap_or(u32::MAX);
        let more = node.unreachable_from.saturating_sub(named);
        if more > 0 {
            lines.push(format!("node {} is unreachable from {more} more", node.name));
        }
    }
    if !lines.is_empty() {
        let _ = writeln!(text, "\n{}", lines.join("\n"));
    }
}

/// A node's health, whether all can reach it, and whether it is drained.
pub(super) fn health(node: &NodeReport) -> String {
    let mut text = node.health.to_owned();
    if !node.unreachable.is_empty() {
        text.push_str(", unreachable");
    }
    match (node.draining, node.replicas + node.leaving) {
        (false, _) => text,
        (true, 0) => text + ", drained",
        (true, _) => text + ", draining",
    }
}

/// Models and how many there are of each, as `2 x H100`.
fn gpus(models: &[String]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for model in models {
        match counted.iter_mut().find(|(known, _)| known == model) {
            Some((_, count)) => *count += 1,
            None => counted.push((model, 1)),
        }
    }
    if counted.is_empty() {
        return dash();
    }
    let each: Vec<_> = counted
        .iter()
        .map(|(model, count)| format!("{count} x {model}"))
        .collect();
    printable(&each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_by_model() {
        assert_eq!(gpus(&[]), "-");
        let models = ["H100", "L4", "H100"].map(str::to_owned);
        assert_eq!(gpus(&models), "2 x H100, 1 x L4");
    }
}
