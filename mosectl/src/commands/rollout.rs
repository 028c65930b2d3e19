//! `mosectl rollout`: how far an update is, and what a person decides about it.

use std::time::Duration;

use mosec_types::{PipelineName, Revision};

use super::deploy::parse_timeout;
use super::history;
use super::status::{Output, report};
use crate::connect::{Cluster, Connection, connect, connect_to_change};
use crate::failure::{Failure, Result, refused_of_pipeline};
use crate::follow;
use crate::report::{Report, RevisionReport, rollout};
use crate::terminal;
use crate::watch::{self, Watch};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Shows how far the update of a pipeline is, and what it waits for.
    Status(Status),
    /// Lets the canary take over, and waits until it serves.
    Promote(Promote),
    /// Ends the update: the revision that serves takes all requests again.
    Abort(Abort),
    /// Lists what was deployed, by whom, and what became of it.
    #[command(after_long_help = "\
Examples:
  mosectl rollout history ocr")]
    History(history::Args),
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl rollout status ocr
  mosectl rollout status ocr --watch       as it goes on")]
struct Status {
    /// Name of the pipeline.
    pipeline: PipelineName,
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
  mosectl rollout promote ocr")]
struct Promote {
    /// Name of the pipeline.
    pipeline: PipelineName,
    /// How long the workers of each step may take to become ready before this stops waiting.
    #[arg(long, default_value = "120s", value_parser = parse_timeout)]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl rollout abort ocr")]
struct Abort {
    /// Name of the pipeline.
    pipeline: PipelineName,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    match args.command {
        Command::Status(args) => status(args).await,
        Command::Promote(args) => promote(args).await,
        Command::Abort(args) => abort(args).await,
        Command::History(args) => history::run(args).await,
    }
}

async fn status(args: Status) -> Result {
    let cluster = connect(&args.connection)?;
    let look = || async {
        let report = report(&cluster).await?;
        let revisions: Vec<_> = report.revisions_of(&args.pipeline).into_iter().cloned().collect();
        if revisions.is_empty() {
            let error = anyhow::anyhow!("there is no pipeline {}", args.pipeline);
            return Err(Failure::from(error).hint("`mosectl status` lists the pipelines"));
        }
        Ok(revisions)
    };
    let render = |revisions: &Vec<RevisionReport>| rollout::render(revisions);
    watch::show(args.watch, args.output, look, render).await
}

async fn promote(args: Promote) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let revision = on_its_way(&report(&cluster).await?, &args.pipeline);
    let promoted = cluster.client.promote(&args.pipeline).await;
    promoted.map_err(|error| explain(error, &args.pipeline))?;
    match revision {
        Some(revision) => follow::until_it_serves(&cluster, &args.pipeline, revision, args.timeout).await,
        // It has begun since.
        None => Ok(terminal::print(&format!("{} is promoted\n", args.pipeline))?),
    }
}

async fn abort(args: Abort) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let aborted = cluster.client.abort(&args.pipeline).await;
    aborted.map_err(|error| explain(error, &args.pipeline))?;
    let text = match serving(&cluster, &args.pipeline).await {
        Some(revision) => format!("{}: aborted, revision {revision} serves\n", args.pipeline),
        None => format!("{}: aborted\n", args.pipeline),
    };
    Ok(terminal::print(&text)?)
}

/// The revision that serves; `None` where nobody can be asked.
async fn serving(cluster: &Cluster, pipeline: &PipelineName) -> Option<u64> {
    let report = report(cluster).await.ok()?;
    let serves = |revision: &&RevisionReport| revision.phase == "serving";
    report
        .revisions_of(pipeline)
        .into_iter()
        .find(serves)
        .map(|revision| revision.revision)
}

fn on_its_way(report: &Report, pipeline: &PipelineName) -> Option<Revision> {
    let is_on_its_way =
        |revision: &&RevisionReport| matches!(revision.phase, "starting" | "canary" | "rolling");
    let revisions = report.revisions_of(pipeline);
    revisions
        .into_iter()
        .find(is_on_its_way)
        .map(|revision| Revision(revision.revision))
}

fn explain(error: mosec_wire::control::ControlError, pipeline: &PipelineName) -> Failure {
    let hint = format!("`mosectl rollout status {pipeline}` shows its revisions");
    refused_of_pipeline(error, &hint)
}
