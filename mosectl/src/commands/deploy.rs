//! `mosectl deploy`: commits a new revision and waits until it serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mosec_types::{PipelineName, PipelineSpec, Revision};
use mosec_wire::control::ControlError;
use tokio::time::{Instant, sleep};

use crate::connect::{Cluster, Connection, connect};
use crate::failure::{Failure, Result};
use crate::manifest::{Manifest, units};
use crate::report::table::indent;
use crate::report::{Report, RevisionReport};
use crate::script;
use crate::terminal::{self, Progress};

/// How often the status is asked for while the workers start: soon enough for the eye, and nothing to the leader.
const LOOK: Duration = Duration::from_millis(200);
/// How long the control plane may be silent meanwhile: many elections long.
const SILENCE: Duration = Duration::from_secs(20);
/// What the control plane is given beyond the deadline to say itself what was wrong.
const MARGIN: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A MOSEC script (server.py) or a manifest (pipeline.yaml).
    file: PathBuf,
    /// Name of the pipeline. The manifest's or the script's own where absent.
    #[arg(long)]
    name: Option<PipelineName>,
    /// How long the workers may take to become ready.
    #[arg(long, default_value = "120s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Interpreter that has mosec-cluster and what the code imports, here and on the nodes. Where absent, the
    /// manifest's, else python3 here and the nodes' own default there.
    #[arg(long)]
    python: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// Arguments of the script.
    #[arg(last = true, value_name = "SCRIPT ARGS")]
    arguments: Vec<String>,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match units::parse_duration(text)? {
        Duration::ZERO => Err("expected a time above zero".into()),
        timeout => Ok(timeout),
    }
}

pub(crate) async fn run(args: Args) -> Result {
    // Before the code is looked at, which can take long.
    let cluster = connect(&args.connection)?;
    let spec = specification(&args)?;
    let revision = cluster
        .client
        .deploy(&spec, Some(args.timeout))
        .await
        .context("cannot deploy")?;
    let mut progress = Progress::new();
    progress.line(&format!("{} revision {revision} is accepted", spec.name));
    match wait(
        &cluster,
        revision,
        &mut progress,
        Instant::now() + args.timeout + MARGIN,
    )
    .await?
    {
        Outcome::Serving => {
            progress.end();
            Ok(terminal::print(&served(
                &spec,
                revision,
                cluster.gateway.as_deref(),
            ))?)
        }
        Outcome::Failed { reason, serving } => {
            progress.end();
            let still = serving
                .map(|other| format!("\nrevision {other} keeps serving"))
                .unwrap_or_default();
            Err(anyhow!(
                "{} revision {revision} failed:\n{}{still}",
                spec.name,
                indent(&reason)
            )
            .into())
        }
        Outcome::Gone => {
            let message = anyhow!("{} revision {revision} is gone", spec.name);
            Err(Failure::from(message).hint("it was deleted, or replaced by a newer one"))
        }
        Outcome::Waiting(report) => {
            progress.end();
            Err(anyhow!(
                "{} revision {revision} is not ready after {:?}:\n{}",
                spec.name,
                args.timeout,
                indent(&report.missing().join("\n"))
            )
            .into())
        }
    }
}

/// What the file stands for, its Python code looked at.
fn specification(args: &Args) -> Result<PipelineSpec> {
    let extension = args
        .file
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    let mut spec = match extension {
        "py" => from_script(args)?,
        "yaml" | "yml" if !args.arguments.is_empty() => {
            return Err(Failure::usage(
                "arguments after -- are for scripts; a manifest takes none",
            ));
        }
        "yaml" | "yml" => from_manifest(&args.file, args.python.as_deref())?,
        _ => {
            let file = args.file.display();
            return Err(Failure::usage(format!(
                "expected a .py script or a .yaml manifest, found {file}"
            )));
        }
    };
    if let Some(name) = &args.name {
        spec.name = name.clone();
    }
    if let Some(python) = &args.python {
        spec.source.python = Some(script::interpreter(python)?);
    }
    spec.validate_for_cluster().context("the pipeline is not valid")?;
    Ok(spec)
}

fn from_script(args: &Args) -> Result<PipelineSpec> {
    let python = args.python.clone().unwrap_or_else(default_python);
    let mut spec = script::inspect(&python, &args.file, &args.arguments)?;
    // The interpreter of this host, which need not be where the nodes have theirs.
    spec.source.python = None;
    if args.name.is_none() {
        let found = script::name_of(&std::path::absolute(&args.file)?);
        spec.name = found.ok_or_else(|| {
            Failure::usage(format!("no pipeline name can be made of {}", args.file.display()))
                .hint("--name gives one")
        })?;
    }
    Ok(spec)
}

fn from_manifest(path: &Path, python: Option<&str>) -> Result<PipelineSpec> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let absolute = std::path::absolute(path)?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let manifest = Manifest::parse(&text, &path.to_string_lossy(), folder)?;
    let own = manifest.spec.source.python.clone();
    let python = python.map(str::to_owned).or(own).unwrap_or_else(default_python);
    let dir = Path::new(&manifest.spec.source.dir);
    let found = script::check(&python, dir, &manifest.workers())?;
    let mut spec = manifest.spec.clone();
    for (index, (stage, worker)) in spec.stages.iter_mut().zip(found).enumerate() {
        if let Some(error) = worker.error {
            return Err(manifest
                .refuse(&format!("stages[{index}].worker"), error.to_string())
                .into());
        }
        if let Some(mime) = worker.mime {
            stage.mime = mime;
        }
        stage.streaming = worker.streaming;
        stage.request_headers = worker.request_headers;
    }
    Ok(spec)
}

/// The interpreter that this program came with, where it came in a wheel.
fn default_python() -> String {
    std::env::var("MOSEC_PYTHON").unwrap_or_else(|_| "python3".into())
}

/// What has become of a revision.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Serving,
    Failed {
        reason: String,
        /// The revision that takes the pipeline's requests meanwhile.
        serving: Option<u64>,
    },
    /// No longer known.
    Gone,
    Waiting(RevisionReport),
}

fn outcome(report: &Report, revision: Revision) -> Outcome {
    match report.revision(revision.0) {
        None => Outcome::Gone,
        Some(found) if found.phase == "serving" => Outcome::Serving,
        Some(RevisionReport {
            reason: Some(reason),
            name,
            ..
        }) => {
            let serving = report
                .pipelines
                .iter()
                .find(|other| other.name == *name && other.phase == "serving");
            Outcome::Failed {
                reason: reason.clone(),
                serving: serving.map(|other| other.revision),
            }
        }
        Some(found) => Outcome::Waiting(found.clone()),
    }
}

/// Waits for an end and shows the way there.
async fn wait(
    cluster: &Cluster,
    revision: Revision,
    progress: &mut Progress,
    deadline: Instant,
) -> Result<Outcome> {
    let mut heard = Instant::now();
    loop {
        match cluster.client.status().await {
            Ok(response) => {
                heard = Instant::now();
                let report =
                    Report::try_from(response).context("the control plane's answer is of another version")?;
                match outcome(&report, revision) {
                    Outcome::Waiting(found) if Instant::now() < deadline => progress.show(&found.readiness()),
                    end => return Ok(end),
                }
            }
            // A control plane that changes its leader is back soon; what was accepted goes on meanwhile.
            Err(ControlError::Unavailable { .. }) if Instant::now() < deadline.min(heard + SILENCE) => {
                progress.show("the control plane does not answer");
            }
            Err(error) => {
                let hint =
                    format!("revision {revision} is accepted; `mosectl status` will tell what becomes of it");
                return Err(Failure::from(error).hint(hint));
            }
        }
        sleep(LOOK).await;
    }
}

fn served(spec: &PipelineSpec, revision: Revision, gateway: Option<&str>) -> String {
    let mut text = format!("{} revision {revision} is serving\n", spec.name);
    for route in &spec.routes {
        text.push_str(&format!("  {}{}\n", gateway.unwrap_or_default(), route.path));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::response;

    #[test]
    fn a_revision_ends_in_its_phase() {
        let mut response = response();
        let report = Report::try_from(response.clone()).unwrap();
        let Outcome::Waiting(found) = outcome(&report, Revision(9)) else {
            panic!("{report:?}")
        };
        assert_eq!(found.missing().len(), 3);
        let Outcome::Failed {
            reason,
            serving: None,
        } = outcome(&report, Revision(5))
        else {
            panic!("{report:?}")
        };
        assert!(reason.contains("Traceback"));
        assert_eq!(outcome(&report, Revision(6)), Outcome::Gone);
        let serving = mosec_wire::control::proto::Phase::Serving;
        response.deployments[0].deployment.as_mut().unwrap().phase = serving.into();
        assert_eq!(
            outcome(&Report::try_from(response).unwrap(), Revision(9)),
            Outcome::Serving
        );
    }

    #[test]
    fn a_timeout_is_above_zero() {
        assert_eq!(parse_timeout("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_timeout("0s").is_err() && parse_timeout("120").is_err());
    }
}
