//! `mosectl delete`: removes a pipeline.

use mosec_types::PipelineName;
use mosec_wire::control::ControlError;
use tonic::Code;

use crate::connect::{Connection, connect_to_change};
use crate::failure::{Failure, Result};
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl delete ocr")]
pub(crate) struct Args {
    /// Name of the pipeline.
    pipeline: PipelineName,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    match cluster.client.delete(&args.pipeline).await {
        Ok(()) => Ok(terminal::print(&format!("deleted {}\n", args.pipeline))?),
        Err(
            error @ ControlError::Refused {
                code: Code::NotFound, ..
            },
        ) => Err(Failure::from(error).hint("`mosectl status` lists the pipelines")),
        Err(error) => Err(error.into()),
    }
}
