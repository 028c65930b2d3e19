//! `mosectl scale`: how many replicas stages have.

use std::collections::BTreeMap;
use std::time::Duration;

use mosec_types::PipelineName;

use super::deploy::parse_timeout;
use crate::connect::{Connection, connect_to_change};
use crate::failure::{Result, refused_of_pipeline};
use crate::follow;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl scale ocr recognise=6
  mosectl scale ocr decode=2 recognise=6 --no-wait")]
pub(crate) struct Args {
    /// Name of the pipeline.
    pipeline: PipelineName,
    /// STAGE=REPLICAS, as decode=4. Stages that are not named stay as they are.
    #[arg(required = true, value_name = "STAGE=REPLICAS", value_parser = parse_count)]
    stages: Vec<(String, u32)>,
    /// How long the replicas may take to become ready before this stops waiting.
    #[arg(long, default_value = "120s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Ends as soon as the change is made.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    connection: Connection,
}

fn parse_count(text: &str) -> Result<(String, u32), String> {
    let expected = || format!("expected STAGE=REPLICAS, as decode=4, found {text:?}");
    let (stage, count) = text.rsplit_once('=').ok_or_else(expected)?;
    let count = count.parse().map_err(|_| expected())?;
    if stage.is_empty() {
        return Err(expected());
    }
    Ok((stage.to_owned(), count))
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let replicas: BTreeMap<_, _> = args.stages.into_iter().collect();
    let scaled = cluster.client.scale(&args.pipeline, &replicas).await;
    let hint = format!("`mosectl rollout status {}` shows its stages", args.pipeline);
    scaled.map_err(|error| refused_of_pipeline(error, &hint))?;
    if args.no_wait {
        return Ok(());
    }
    follow::until_scaled(&cluster, &args.pipeline, &replicas, args.timeout).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_of_a_stage() {
        assert_eq!(parse_count("decode=4"), Ok(("decode".into(), 4)));
        assert_eq!(parse_count("a=b=1"), Ok(("a=b".into(), 1)));
        for wrong in ["decode", "=4", "decode=", "decode=-1", "decode=many"] {
            assert!(
                parse_count(wrong).is_err_and(|error| error.contains("decode=4")),
                "{wrong}"
            );
        }
    }
}
