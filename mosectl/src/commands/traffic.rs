//! `mosectl traffic`: the share of a canary.

use mosec_types::{PipelineName, units};

use crate::connect::{Connection, connect_to_change};
use crate::failure::{Result, refused_of_pipeline};
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl traffic ocr 25%")]
pub(crate) struct Args {
    /// Name of the pipeline.
    pipeline: PipelineName,
    /// Share of the requests that its canary takes, as 25%.
    #[arg(value_parser = parse_weight)]
    weight: u32,
    #[command(flatten)]
    connection: Connection,
}

fn parse_weight(text: &str) -> Result<u32, String> {
    match units::parse_share(text)? {
        share if share % 100 == 0 && share <= 10_000 => Ok(share / 100),
        _ => Err("expected whole percents, 0% to 100%".into()),
    }
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect_to_change(&args.connection)?;
    let set = cluster.client.set_traffic(&args.pipeline, args.weight).await;
    let hint = format!("`mosectl rollout status {}` shows its revisions", args.pipeline);
    set.map_err(|error| refused_of_pipeline(error, &hint))?;
    let text = format!(
        "{}: the canary takes {}% of the requests\n",
        args.pipeline, args.weight
    );
    Ok(terminal::print(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_in_whole_percents() {
        assert_eq!((parse_weight("25%"), parse_weight("0%")), (Ok(25), Ok(0)));
        for wrong in ["25", "0.5%", "101%", "-1%"] {
            assert!(parse_weight(wrong).is_err(), "{wrong}");
        }
    }
}
