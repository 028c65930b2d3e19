//! `mosectl plan`: what a deployment would change, without one.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use mosec_types::PipelineSpec;
use mosec_types::topology::Placement;
use mosec_wire::control::proto;

use super::deploy::{Source, specification};
use crate::connect::{Connection, connect};
use crate::difference;
use crate::failure::Result;
use crate::report::table::table;
use crate::terminal;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  mosectl plan -f pipeline.yaml            what would change, and where replicas would go")]
pub(crate) struct Args {
    /// A MOSEC script (server.py), a manifest (pipeline.yaml), or a folder that has one of that name.
    #[arg(short, long)]
    file: PathBuf,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    connection: Connection,
}

pub(crate) async fn run(args: Args) -> Result {
    let cluster = connect(&args.connection)?;
    let mut spec = specification(&args.file, &args.source)?;
    // Its name tells whether the code is another; nothing is sent.
    args.source.pack(&mut spec)?;
    let plan = cluster.client.plan(&spec).await.context("cannot plan")?;
    let unplaced = plan.unplaced.len();
    terminal::print(&render(&spec, plan)?)?;
    if unplaced == 0 {
        return Ok(());
    }
    Err(anyhow!("{unplaced} replicas fit nowhere beside what runs now").into())
}

fn render(spec: &PipelineSpec, plan: proto::PlanResponse) -> Result<String> {
    let name = &spec.name;
    let mut text = match (plan.serving, plan.serving_spec) {
        (Some(revision), Some(serving)) => {
            let serving = PipelineSpec::try_from(serving)
                .context("the control plane's answer is of another version")?;
            let lines = difference::of(&serving, spec).context("cannot compare")?;
            if lines.is_empty() {
                format!("{name}: revision {revision} serves just this\n")
            } else {
                let lines = lines.join("\n");
                format!("{name}: changes from revision {revision}, which serves\n{lines}\n")
            }
        }
        _ => format!("{name}: a new pipeline\n"),
    };
    let mut table = table(&["STAGE", "REPLICA", "NODE", "GPUS"]);
    for placement in plan.placements {
        let placement =
            Placement::try_from(placement).context("the control plane's answer is of another version")?;
        let stage = spec
            .stage(placement.stage)
            .map_or("?", |stage| stage.name.as_str());
        let gpus: Vec<_> = placement.gpus.iter().map(u32::to_string).collect();
        table.add_row([
            stage.to_owned(),
            placement.replica.to_string(),
            placement.node.to_string(),
            if gpus.is_empty() {
                "-".into()
            } else {
                gpus.join(",")
            },
        ]);
    }
    if !table.is_empty() {
        text += &format!("\n{}\n", table.trim_fmt());
    }
    for line in plan.unplaced {
        text += &format!("\n{}\n", terminal::printable(&line));
    }
    Ok(text)
}
