//! `mosectl rollback`: goes back to an earlier revision at once and waits until it serves.

use std::time::Duration;

use mosec_types::{PipelineName, Revision};

use super::deploy::parse_timeout;
use crate::connect::{Connection, connect_to_change};
use crate::failure::{Result, refused_of_pipeline};
use crate::follow;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl rollback ocr                     to the revision that served before
  mosectl rollback ocr 12                  to one that `mosectl history ocr` lists

An update on its way is ended with `mosectl rollout abort`, which keeps the revision that serves.")]
pub(crate) struct Args {
    /// Name of the pipeline.
    pipeline: PipelineName,
    /// The revision to go back to. The one that served before where absent.
    revision: Option<u64>,
    /// How long the workers may take to become ready.
    #[arg(long, default_value = "120s", value_parser = parse_timeout)]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let to = args.revision.map(Revision);
    match cluster
        .client
        .rollback(&args.pipeline, to, Some(args.timeout))
        .await
    {
        Ok(revision) => follow::until_it_serves(&cluster, &args.pipeline, revision, args.timeout).await,
        Err(error) => {
            let hint = format!("`mosectl history {}` lists its revisions", args.pipeline);
            Err(refused_of_pipeline(error, &hint))
        }
    }
}
