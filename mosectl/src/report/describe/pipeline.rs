//! One pipeline: what is in force, what runs, and what happened to it.

use std::fmt::Write as _;

use mosec_types::topology::Deployment;
use mosec_types::{PipelineName, PipelineSpec};
use mosec_wire::control::{ConvertError, proto};
use serde::Serialize;
use serde_json::Value;

use super::{events, spec};
use crate::report::audit::{self, AuditReport};
use crate::report::history::{self, RecordReport};
use crate::report::{Report, RevisionReport, UnreachableReport, rollout, table};
use crate::watch::Watched;

/// One pipeline. Fields are only ever added: scripts read this.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PipelineDescription {
    pub(crate) name: String,
    /// The revision whose specification is `spec`: the one that serves, else the newest.
    pub(crate) revision: Option<u64>,
    /// As the control plane has it, with the names of variables and without their values, which may be secret.
    pub(crate) spec: Option<Value>,
    pub(crate) revisions: Vec<RevisionReport>,
    /// What was deployed of it, the newest last.
    pub(crate) history: Vec<RecordReport>,
    /// What people did to it lately, the newest last.
    pub(crate) events: Vec<AuditReport>,
    #[serde(skip)]
    typed: Option<PipelineSpec>,
}

impl Watched for PipelineDescription {}

impl PipelineDescription {
    /// `None` where the status has nothing of such a pipeline.
    pub(crate) fn new(
        pipeline: &PipelineName,
        status: proto::StatusResponse,
        history: Vec<proto::RevisionRecord>,
        audit: Vec<proto::AuditRecord>,
    ) -> Result<Option<Self>, ConvertError> {
        let deployments = status
            .deployments
            .iter()
            .filter_map(|status| status.deployment.clone());
        let deployments: Vec<_> = deployments.map(Deployment::try_from).collect::<Result<_, _>>()?;
        let report = Report::try_from(status)?;
        let revisions: Vec<_> = report.revisions_of(pipeline).into_iter().cloned().collect();
        let serving = revisions.iter().find(|revision| revision.phase == "serving");
        let Some(shown) = serving.or(revisions.last()).map(|revision| revision.revision) else {
            return Ok(None);
        };
        let deployment = deployments
            .into_iter()
            .find(|deployment| deployment.revision.0 == shown);
        let typed = deployment.map(|deployment| (*deployment.spec).clone());
        Ok(Some(Self {
            name: pipeline.to_string(),
            revision: Some(shown),
            spec: typed.as_ref().and_then(spec::without_secrets),
            revisions,
            history: history.into_iter().map(RecordReport::from).collect(),
            events: events(audit, pipeline.as_str()),
            typed,
        }))
    }

    /// Each once, whichever of the revisions have replicas there.
    fn unreachable(&self) -> Vec<&UnreachableReport> {
        let mut found = Vec::new();
        for report in self.revisions.iter().flat_map(|revision| &revision.unreachable) {
            if !found.contains(&report) {
                found.push(report);
            }
        }
        found
    }

    pub(crate) fn render(&self) -> String {
        let mut text = format!("pipeline {}", self.name);
        if let Some(spec) = &self.typed {
            let revision = self.revision.unwrap_or_default();
            let _ = writeln!(text, "  specification of revision {revision}");
            text += &spec::header(spec);
            let shown = self.revisions.iter().find(|shown| shown.revision == revision);
            let stages = shown.map_or(&[][..], |shown| &shown.stages);
            let _ = writeln!(text, "\n{}", spec::stages(spec, stages).trim_fmt());
        } else {
            text.push('\n');
        }
        let _ = write!(text, "\n{}", rollout::render(&self.revisions));
        let replicas = table::replicas(&self.revisions);
        if !replicas.is_empty() {
            let _ = writeln!(text, "\n{}", replicas.trim_fmt());
        }
        for found in self.unreachable() {
            let _ = writeln!(text, "\n{}", found.to_line());
        }
        for revision in &self.revisions {
            table::failed_starts(&mut text, revision);
        }
        if !self.history.is_empty() {
            let _ = write!(text, "\n{}", history::render(&self.history));
        }
        if !self.events.is_empty() {
            let _ = write!(text, "\n{}", audit::render(&self.events));
        }
        text
    }
}
