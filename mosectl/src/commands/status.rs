//! `mosectl status`: the whole cluster as its leader sees it.

use anyhow::Context as _;
use clap::ValueEnum;

use crate::connect::{Cluster, Connection, connect};
use crate::failure::Result;
use crate::report::{Report, table};
use crate::watch::{self, Watch};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl status                           everything, once
  mosectl status --watch                   as it changes
  mosectl status --output json | jq -r '.nodes[] | select(.health != \"up\").name'")]
pub(crate) struct Args {
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// One object, described in docs/mosectl.md.
    Json,
}

/// The whole cluster as its leader sees it.
pub(crate) async fn report(cluster: &Cluster) -> Result<Report> {
    let response = cluster.client.status().await.context("cannot get the status")?;
    let report = Report::try_from(response);
    Ok(report.context("the control plane's answer is of another version")?)
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect(&args.connection)?;
    watch::show(args.watch, args.output, || report(&cluster), table::render).await
}
