//! `mosectl node`: the hosts with workers, and taking one out of service.

use std::time::Duration;

use anyhow::anyhow;
use mosec_types::NodeId;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::deploy::parse_timeout;
use super::status::{Output, report};
use crate::connect::{Cluster, Connection, connect, connect_to_change};
use crate::failure::{Failure, Result, refused};
use crate::report::table::indent;
use crate::report::{Report, nodes};
use crate::terminal::{self, Progress};
use crate::watch::{self, Watch};

/// How often a drain is looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists the nodes, what they have, and how many replicas run there.
    List(List),
    /// Moves all replicas elsewhere, finishes their work, and waits until the node is empty.
    Drain(Drain),
    /// Lets a drained node have replicas again.
    #[command(after_long_help = "\
Examples:
  mosectl node uncordon gpu-3")]
    Uncordon(One),
    /// Forgets a node whose agent was stopped.
    #[command(after_long_help = "\
Examples:
  mosectl node remove gpu-3                once its agent was stopped")]
    Remove(One),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl node list
  mosectl node list --watch                as it changes")]
struct List {
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl node drain gpu-3                 and wait until it is empty
  mosectl node drain gpu-3 --no-wait")]
struct Drain {
    /// Name of the node.
    node: NodeId,
    /// How long it may take until the node is empty before this stops waiting; the drain goes on.
    #[arg(long, default_value = "10m", value_parser = parse_timeout)]
    timeout: Duration,
    /// Ends as soon as the drain has begun.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
struct One {
    /// Name of the node.
    node: NodeId,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    match args.command {
        Command::List(args) => list(args).await,
        Command::Drain(args) => drain(args).await,
        Command::Uncordon(args) => uncordon(args).await,
        Command::Remove(args) => remove(args).await,
    }
}

async fn list(args: List) -> Result {
    let cluster = connect(&args.connection)?;
    let look = || async { Ok(report(&cluster).await?.nodes) };
    watch::show(args.watch, args.output, look, |nodes| nodes::render(nodes)).await
}

fn explain(error: mosec_wire::control::ControlError) -> Failure {
    refused(error, &[Code::NotFound], "`mosectl node list` lists the nodes")
}

async fn uncordon(args: One) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    cluster
        .client
        .drain_node(&args.node, false)
        .await
        .map_err(explain)?;
    Ok(terminal::print(&format!(
        "node {} takes replicas again\n",
        args.node
    ))?)
}

async fn remove(args: One) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    cluster.client.remove_node(&args.node).await.map_err(explain)?;
    Ok(terminal::print(&format!("node {} is removed\n", args.node))?)
}

async fn drain(args: Drain) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    cluster
        .client
        .drain_node(&args.node, true)
        .await
        .map_err(explain)?;
    if args.no_wait {
        return Ok(());
    }
    wait(&cluster, &args.node, args.timeout).await
}

/// Waits until nothing runs on the node any more.
async fn wait(cluster: &Cluster, node: &NodeId, timeout: Duration) -> Result {
    let mut progress = Progress::new();
    let deadline = Instant::now() + timeout;
    loop {
        // A control plane that changes its leader is back soon; the drain goes on meanwhile.
        if let Ok(report) = report(cluster).await {
            let left = left_on(&report, node);
            if left.is_empty() {
                progress.end();
                return Ok(terminal::print(&format!("node {node} is drained\n"))?);
            }
            progress.show(&format!("{} replicas are left: {}", left.len(), left[0]));
            if Instant::now() >= deadline {
                progress.end();
                return Err(unfinished(&report, node, timeout, &left));
            }
        } else if Instant::now() >= deadline {
            return Err(anyhow!("node {node}: the control plane does not answer").into());
        }
        sleep(LOOK).await;
    }
}

fn unfinished(report: &Report, node: &NodeId, timeout: Duration, left: &[String]) -> Failure {
    let unplaced = report
        .pipelines
        .iter()
        .flat_map(|revision| revision.unplaced.iter().cloned());
    let lines: Vec<_> = left.iter().cloned().chain(unplaced).collect();
    let error = anyhow!(
        "node {node} is not drained after {timeout:?}:\n{}",
        indent(&lines.join("\n"))
    );
    Failure::from(error).hint(format!(
        "the drain goes on; `mosectl node uncordon {node}` ends it"
    ))
}

/// The replicas that are on the node: placed there, or finishing what they have.
fn left_on(report: &Report, node: &NodeId) -> Vec<String> {
    let placed = report.pipelines.iter().flat_map(|revision| {
        let here = revision
            .replicas
            .iter()
            .filter(|replica| replica.node == node.as_str());
        here.map(|replica| {
            format!(
                "{} stage {} replica {}",
                revision.name, replica.stage, replica.replica
            )
        })
    });
    let found = report.nodes.iter().find(|other| other.name == node.as_str());
    let leaving = found.map_or(0, |node| node.leaving);
    placed
        .chain((0..leaving).map(|_| "one that finishes its work".to_owned()))
        .collect()
}
