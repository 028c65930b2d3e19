//! What is in a backup.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use mosec_control_plane::backup::{Contents, Missing};
use mosec_types::{PipelineName, Revision};
use serde::Serialize;

use super::history::date;
use super::table::{dash, table};
use crate::terminal::printable;

/// A backup that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BackupReport {
    pub(crate) cluster: String,
    /// Those that voted when it was made.
    pub(crate) members: Vec<MemberInBackup>,
    /// RFC 3339, on the clock of the member that made it.
    pub(crate) taken_at: String,
    /// Version of the build that made it.
    pub(crate) build: String,
    /// Of commands and state.
    pub(crate) format: u8,
    pub(crate) member: u64,
    pub(crate) term: u64,
    /// The last log entry that is certainly in it.
    pub(crate) index: u64,
    pub(crate) bytes: u64,
    pub(crate) bundles: usize,
    pub(crate) nodes: usize,
    /// Join tokens, by their hashes.
    pub(crate) tokens: usize,
    pub(crate) pipelines: Vec<PipelineInBackup>,
    /// Bundles that no member could give when it was made.
    pub(crate) missing: Vec<MissingInBackup>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MissingInBackup {
    pub(crate) bundle: String,
    /// Those that name it.
    pub(crate) revisions: Vec<u64>,
    /// Those of them that serve or are on their way.
    pub(crate) needed_by: Vec<u64>,
    pub(crate) why: String,
}

impl From<&Missing> for MissingInBackup {
    fn from(missing: &Missing) -> Self {
        let numbers = |revisions: &BTreeSet<(PipelineName, Revision)>| {
            revisions.iter().map(|(_, revision)| revision.0).collect()
        };
        Self {
            bundle: missing.bundle.to_string(),
            revisions: numbers(&missing.revisions),
            needed_by: numbers(&missing.needed_by),
            why: missing.why.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct MemberInBackup {
    pub(crate) member: u64,
    /// `host:port`.
    pub(crate) address: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PipelineInBackup {
    pub(crate) name: String,
    /// Those that can be gone back to, oldest first.
    pub(crate) revisions: Vec<u64>,
    /// The one that serves, if one does.
    pub(crate) serving: Option<u64>,
}

impl From<&Contents> for BackupReport {
    fn from(contents: &Contents) -> Self {
        let Contents {
            header,
            model,
            missing,
            bytes,
        } = contents;
        let members = header.members.iter().map(|(&member, address)| MemberInBackup {
            member,
            address: address.clone(),
        });
        let pipeline = |(name, history): (&PipelineName, &mosec_control_plane::state::History)| {
            let serving = model.serving(name);
            PipelineInBackup {
                name: name.to_string(),
                revisions: history.records().iter().map(|record| record.revision.0).collect(),
                serving: serving.map(|rollout| rollout.deployment.revision.0),
            }
        };
        Self {
            cluster: header.cluster_id.clone(),
            members: members.collect(),
            taken_at: date(header.taken_at_unix_ms),
            build: header.build.clone(),
            format: header.format,
            member: header.member,
            term: header.term,
            index: header.index,
            bytes: *bytes,
            bundles: header.bundles.len() - missing.len(),
            nodes: model.nodes.len(),
            tokens: model.tokens.list().len(),
            pipelines: model.histories.iter().map(pipeline).collect(),
            missing: missing.iter().map(MissingInBackup::from).collect(),
        }
    }
}

pub(crate) fn render(report: &BackupReport) -> String {
    let BackupReport {
        cluster,
        members,
        taken_at,
        build,
        format,
        member,
        term,
        index,
        bytes,
        bundles,
        nodes,
        tokens,
        pipelines,
        missing,
    } = report;
    let mut text = String::new();
    let lacking = match missing.len() {
        0 => String::new(),
        count => format!(" ({count} missing)"),
    };
    let _ = writeln!(
        text,
        "cluster {}  taken {taken_at}  by member {member}, build {}, format {format}\n\
         log entry {index} of term {term}  pipelines {}  bundles {bundles}{lacking}  nodes {nodes}  tokens {tokens}  {bytes} bytes, \
         all checked",
        printable(cluster),
        printable(build),
        pipelines.len(),
    );
    let members: Vec<_> = members
        .iter()
        .map(|MemberInBackup { member, address }| printable(&format!("{member}={address}")))
        .collect();
    let _ = writeln!(text, "members {}", members.join(","));
    if !pipelines.is_empty() {
        let mut table = table(&["PIPELINE", "SERVING", "REVISIONS"]);
        for pipeline in pipelines {
            let revisions: Vec<_> = pipeline.revisions.iter().map(u64::to_string).collect();
            table.add_row([
                pipeline.name.clone(),
                pipeline
                    .serving
                    .map_or_else(dash, |revision| revision.to_string()),
                revisions.join(" "),
            ]);
        }
        let _ = writeln!(text, "\n{}", table.trim_fmt());
    }
    text
}
