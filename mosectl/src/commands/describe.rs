//! `mosectl describe`: everything about one pipeline or one node.

use anyhow::{Context as _, anyhow};
use mosec_types::{NodeId, PipelineName};
use mosec_wire::control::ControlError;
use tonic::Code;

use super::status::Output;
use crate::connect::{Cluster, Connection, connect};
use crate::failure::{Failure, Result};
use crate::report::describe::{NodeDescription, PipelineDescription};
use crate::watch::{self, Watch};

/// An answer that cannot be read.
const OTHER_VERSION: &str = "the control plane's answer is of another version";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_long_help = "\
Examples:
  mosectl describe ocr            what is in force, what runs where, and what happened to it lately
  mosectl describe ocr --watch    the same, as it changes
  mosectl describe node gpu-3     what a node has, and what runs there
  mosectl describe pipeline node  a pipeline with the name of a subcommand")]
pub(crate) struct Args {
    #[command(subcommand)]
    kind: Option<Kind>,
    /// Name of the pipeline.
    #[arg(required = true)]
    pipeline: Option<PipelineName>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct How {
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Subcommand)]
enum Kind {
    /// Describes a pipeline.
    #[command(after_long_help = "\
Examples:
  mosectl describe pipeline node")]
    Pipeline(Pipeline),
    /// Describes a node.
    #[command(after_long_help = "\
Examples:
  mosectl describe node gpu-3
  mosectl describe node gpu-3 --watch")]
    Node(Node),
}

#[derive(Debug, clap::Args)]
struct Pipeline {
    /// Name of the pipeline.
    pipeline: PipelineName,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, clap::Args)]
struct Node {
    /// Name of the node.
    node: NodeId,
    #[command(flatten)]
    how: How,
}

pub(crate) async fn run(args: Args) -> Result {
    match (args.kind, args.pipeline) {
        (Some(Kind::Node(Node { node, how })), _) => describe_node(&node, how).await,
        (Some(Kind::Pipeline(Pipeline { pipeline, how })), _) => describe_pipeline(&pipeline, how).await,
        (None, Some(pipeline)) => describe_pipeline(&pipeline, args.how).await,
        // The parser asks for one of them.
        (None, None) => Err(Failure::usage("expected a pipeline, or node and its name")),
    }
}

async fn describe_pipeline(name: &PipelineName, how: How) -> Result {
    let cluster = connect(&how.connection)?;
    let look = || pipeline(&cluster, name);
    watch::show(how.watch, how.output, look, PipelineDescription::render).await
}

async fn pipeline(cluster: &Cluster, name: &PipelineName) -> Result<PipelineDescription> {
    let unknown = || {
        let error = anyhow!("there is no pipeline {name}");
        Failure::from(error).hint("`mosectl status` lists the pipelines")
    };
    let history = match cluster.client.history(name).await {
        Ok(history) => history,
        Err(ControlError::Refused {
            code: Code::NotFound, ..
        }) => return Err(unknown()),
        Err(error) => return Err(error.into()),
    };
    let status = cluster.client.status().await.context("cannot get the status")?;
    let audit = cluster.client.audit(None).await?;
    let found = PipelineDescription::new(name, status, history, audit).context(OTHER_VERSION)?;
    found.ok_or_else(unknown)
}

async fn describe_node(name: &NodeId, how: How) -> Result {
    let cluster = connect(&how.connection)?;
    let look = || node(&cluster, name);
    watch::show(how.watch, how.output, look, NodeDescription::render).await
}

async fn node(cluster: &Cluster, name: &NodeId) -> Result<NodeDescription> {
    let status = cluster.client.status().await.context("cannot get the status")?;
    let audit = cluster.client.audit(None).await?;
    let found = NodeDescription::new(name, status, audit).context(OTHER_VERSION)?;
    found.ok_or_else(|| {
        let error = anyhow!("there is no node {name}");
        Failure::from(error).hint("`mosectl node list` lists the nodes")
    })
}
