//! `mosectl history`: what was deployed of a pipeline, by whom, and what became of it.

use anyhow::Context as _;
use mosec_types::PipelineName;
use mosec_wire::control::ControlError;
use tonic::Code;

use super::status::Output;
use crate::connect::{Connection, connect};
use crate::failure::{Failure, Result};
use crate::report::history::{self, RecordReport};
use crate::terminal;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the pipeline.
    pipeline: PipelineName,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect(&args.connection)?;
    let records = match cluster.client.history(&args.pipeline).await {
        Ok(records) => records,
        Err(
            error @ ControlError::Refused {
                code: Code::NotFound, ..
            },
        ) => return Err(Failure::from(error).hint("`mosectl status` lists the pipelines")),
        Err(error) => return Err(error.into()),
    };
    let records: Vec<_> = records.into_iter().map(RecordReport::from).collect();
    let text = match args.output {
        Output::Table => history::render(&records),
        Output::Json => serde_json::to_string_pretty(&records).context("cannot write JSON")? + "\n",
    };
    Ok(terminal::print(&text)?)
}
