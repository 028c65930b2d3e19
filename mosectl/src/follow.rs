//! Follows a revision that was committed until it serves or has failed, and shows the way there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mosec_types::{PipelineName, Revision};
use mosec_wire::control::ControlError;
use tokio::time::{Instant, sleep};

use crate::commands::status::report;
use crate::connect::Cluster;
use crate::failure::{Failure, Result};
use crate::patience::{Patience, Patient};
use crate::report::table::indent;
use crate::report::{Report, RevisionReport, StageReport};
use crate::terminal::{self, Progress};

/// How often the status is asked for while the workers start: soon enough for the eye, and nothing to the leader.
const LOOK: Duration = Duration::from_millis(200);
/// How long the control plane may be silent meanwhile: many elections long.
const SILENCE: Duration = Duration::from_secs(20);

/// Waits until the revision serves, which is printed with its routes; an error says why it does not.
pub(crate) async fn until_it_serves(
    cluster: &Cluster,
    pipeline: &PipelineName,
    revision: Revision,
    timeout: Duration,
) -> Result {
    let mut progress = Progress::new();
    progress.line(&format!("{} revision {revision} is accepted", pipeline));
    match wait(cluster, revision, &mut progress, timeout).await? {
        Outcome::Serving(found) => {
            progress.end();
            let text = served(pipeline, &found, cluster.gateway.as_deref());
            Ok(terminal::print(&text)?)
        }
        Outcome::Failed { reason, serving } => {
            progress.end();
            let still = serving
                .map(|other| format!("\nrevision {other} keeps serving"))
                .unwrap_or_default();
            Err(anyhow!(
                "{} revision {revision} failed:\n{}{still}",
                pipeline,
                indent(&reason)
            )
            .into())
        }
        Outcome::Canary(found) => {
            progress.end();
            Ok(terminal::print(&waiting(pipeline, &found))?)
        }
        Outcome::Gone => {
            let message = anyhow!("{} revision {revision} is gone", pipeline);
            Err(Failure::from(message).hint("it was deleted, or replaced by a newer one"))
        }
        Outcome::Unjudged(found) => {
            progress.end();
            Ok(terminal::print(&unjudged(pipeline, &found))?)
        }
        Outcome::Waiting(found) => {
            progress.end();
            let error = anyhow!(late(pipeline, &found, timeout));
            let hint = format!("it goes on: `mosectl rollout status {pipeline} --watch` shows how");
            Err(Failure::from(error).hint(hint))
        }
    }
}

/// What has become of a revision.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Serving(RevisionReport),
    Failed {
        reason: String,
        /// The revision that takes the pipeline's requests meanwhile.
        serving: Option<u64>,
    },
    /// It takes some requests, and goes on when somebody promotes it.
    Canary(RevisionReport),
    /// It takes some requests, too few to be judged by, and goes on by itself once there are enough.
    Unjudged(RevisionReport),
    /// No longer known.
    Gone,
    Waiting(RevisionReport),
}

fn outcome(report: &Report, revision: Revision) -> Outcome {
    match report.revision(revision.0) {
        None => Outcome::Gone,
        Some(found) if found.phase == "serving" => Outcome::Serving(found.clone()),
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
        Some(found) if found.waits_for_promotion => Outcome::Canary(found.clone()),
        Some(found) => Outcome::Waiting(found.clone()),
    }
}

/// Waits for an end and shows the way there.
async fn wait(
    cluster: &Cluster,
    revision: Revision,
    progress: &mut Progress,
    timeout: Duration,
) -> Result<Outcome> {
    let mut heard = Instant::now();
    let mut patience = Patience::new(timeout, heard.into_std());
    loop {
        match cluster.client.status().await {
            Ok(response) => {
                heard = Instant::now();
                let report =
                    Report::try_from(response).context("the control plane's answer is of another version")?;
                match outcome(&report, revision) {
                    Outcome::Waiting(found) => match patience.look(&report, &found, heard.into_std()) {
                        Patient::Waits => progress.show_with(&on_its_way(&found), &found.missing()),
                        Patient::IsDone if found.waits_for_requests => return Ok(Outcome::Unjudged(found)),
                        Patient::IsDone => return Ok(Outcome::Waiting(found)),
                    },
                    end => return Ok(end),
                }
            }
            // A control plane that changes its leader is back soon; what was accepted goes on meanwhile.
            Err(ControlError::Unavailable { .. })
                if patience.lasts(Instant::now().into_std()) && heard.elapsed() < SILENCE =>
            {
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

/// Where a revision is on its way, in one line.
fn on_its_way(revision: &RevisionReport) -> String {
    let mut text = revision.progress();
    if revision.weight > 0 {
        text = format!("{} {}%  {text}", revision.phase, revision.weight);
    }
    match &revision.waits_for {
        // That is what the line says already.
        Some(waits_for) if !waits_for.starts_with("ready replicas") => {
            format!("{text}  waits for {waits_for}")
        }
        _ => text,
    }
}

fn waiting(pipeline: &PipelineName, revision: &RevisionReport) -> String {
    format!(
        "{pipeline} revision {} is a canary with {}% of the requests\n  \
         mosectl rollout promote {pipeline}   lets it take over\n  \
         mosectl rollout abort {pipeline}     takes it back\n",
        revision.revision, revision.weight
    )
}

/// What is in the way of one that has had its time.
fn late(pipeline: &PipelineName, found: &RevisionReport, timeout: Duration) -> String {
    let revision = found.revision;
    match &found.missing()[..] {
        [] => format!(
            "{pipeline} revision {revision} does not serve after {timeout:?}:\n{}",
            indent(&on_its_way(found))
        ),
        missing => format!(
            "{pipeline} revision {revision} is not ready after {timeout:?}:\n{}",
            indent(&missing.join("\n"))
        ),
    }
}

fn unjudged(pipeline: &PipelineName, found: &RevisionReport) -> String {
    let RevisionReport { revision, weight, .. } = found;
    let bounds = &found.rollout.bounds;
    let (judged, wanted) = (found.traffic.requests, bounds.min_requests);
    let mut kept = Vec::new();
    if let Some(parts) = bounds.max_errors {
        kept.push(format!("at most {}% of them fail", f64::from(parts) / 100.0));
    }
    if let Some(time) = bounds.max_p99 {
        kept.push(format!("99 of 100 are answered within {time:?}"));
    }
    let kept = kept.join(" and ");
    format!(
        "{pipeline} revision {revision} is a healthy canary with {weight}% of the requests\n  \
         it promotes itself once it has had {wanted} requests ({judged} so far), if {kept}\n  \
         mosectl rollout status {pipeline} --watch   shows how it goes on\n  \
         mosectl rollout promote {pipeline}          lets it take over now\n  \
         mosectl rollout abort {pipeline}            takes it back\n"
    )
}

/// Waits until the stages of the revision that serves have these replicas, all of them ready.
pub(crate) async fn until_scaled(
    cluster: &Cluster,
    pipeline: &PipelineName,
    replicas: &BTreeMap<String, u32>,
    timeout: Duration,
) -> Result {
    let mut progress = Progress::new();
    let deadline = Instant::now() + timeout;
    loop {
        let late = Instant::now() >= deadline;
        match report(cluster).await {
            Ok(report) => {
                let revisions = report.revisions_of(pipeline);
                let Some(serving) = revisions.iter().find(|revision| revision.phase == "serving") else {
                    return Ok(());
                };
                let is_done = |stage: &StageReport| {
                    let wanted = replicas.get(&stage.name);
                    wanted.is_none_or(|&wanted| stage.goal != wanted || stage.ready == wanted)
                };
                // While another revision takes over, this one has what that leaves it.
                let is_updated = revisions
                    .iter()
                    .any(|revision| matches!(revision.phase, "canary" | "rolling"));
                if is_updated || serving.stages.iter().all(is_done) {
                    progress.end();
                    return Ok(terminal::print(&format!("{pipeline}: {}\n", serving.progress()))?);
                }
                if late {
                    progress.end();
                    let missing = indent(&serving.missing().join("\n"));
                    return Err(anyhow!("{pipeline} is not scaled after {timeout:?}:\n{missing}").into());
                }
                progress.show_with(&serving.progress(), &serving.missing());
            }
            Err(error) if late => return Err(error),
            // A control plane that changes its leader is back soon.
            Err(_) => progress.show("the control plane does not answer"),
        }
        sleep(LOOK).await;
    }
}

fn served(pipeline: &PipelineName, revision: &RevisionReport, gateway: Option<&str>) -> String {
    let mut text = format!("{pipeline} revision {} is serving\n", revision.revision);
    for path in &revision.routes {
        text.push_str(&format!("  {}{path}\n", gateway.unwrap_or_default()));
    }
    for found in &revision.unreachable {
        text.push_str(&format!("but {}\n", found.to_line()));
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
        assert!(matches!(
            outcome(&Report::try_from(response).unwrap(), Revision(9)),
            Outcome::Serving(found) if found.revision == 9
        ));
    }

    #[test]
    fn a_canary_without_requests_says_what_it_waits_for() {
        let mut response = response();
        response.deployments[0].waits_for_requests = true;
        let report = Report::try_from(response).unwrap();
        let mut canary = report.revision(9).unwrap().clone();
        canary.weight = 10;
        canary.traffic.requests = 12;
        canary.rollout.bounds.max_errors = Some(50);
        canary.rollout.bounds.max_p99 = Some(Duration::from_millis(250));
        let expected = "\
ocr revision 9 is a healthy canary with 10% of the requests
  it promotes itself once it has had 50 requests (12 so far), if at most 0.5% of them fail and 99 of 100 are answered within 250ms
  mosectl rollout status ocr --watch   shows how it goes on
  mosectl rollout promote ocr          lets it take over now
  mosectl rollout abort ocr            takes it back
";
        let name = PipelineName::new("ocr").unwrap();
        assert_eq!(unjudged(&name, &canary), expected);
    }

    #[test]
    fn what_is_late_is_named_with_what_it_waits_for() {
        let report = Report::try_from(response()).unwrap();
        let mut found = report.revision(9).unwrap().clone();
        let name = PipelineName::new("ocr").unwrap();
        let text = late(&name, &found, Duration::from_secs(5));
        assert!(
            text.starts_with("ocr revision 9 is not ready after 5s:\n    stage find replica 1 on node a"),
            "{text}"
        );
        (found.replicas, found.unplaced) = (Vec::new(), Vec::new());
        found.waits_for = Some("min_healthy_time: 4s of 10s".into());
        let text = late(&name, &found, Duration::from_secs(5));
        assert!(
            text.starts_with("ocr revision 9 does not serve after 5s:\n")
                && text.ends_with("waits for min_healthy_time: 4s of 10s"),
            "{text}"
        );
    }
}
