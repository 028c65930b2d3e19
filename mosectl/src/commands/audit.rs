//! `mosectl audit`: who changed what, and when.

use anyhow::Context as _;

use super::status::Output;
use crate::connect::{Connection, connect};
use crate::failure::Result;
use crate::report::audit::{self, AuditReport};
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl audit --limit 20                 what people did lately
  mosectl audit --output json | jq -r 'select(.refusal != null)'")]
pub(crate) struct Args {
    /// Show the newest so many. All that are kept where absent.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect(&args.connection)?;
    let records = cluster.client.audit(args.limit).await?;
    let records: Vec<_> = records.into_iter().map(AuditReport::from).collect();
    let text = match args.output {
        Output::Table => audit::render(&records),
        Output::Json => serde_json::to_string_pretty(&records).context("cannot write JSON")? + "\n",
    };
    Ok(terminal::print(&text)?)
}
