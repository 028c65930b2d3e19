//! The audit trail: what people did, when, and what came of it.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::command::{Command, Origin, Reply};

/// Most entries kept: months of deployments, and a bound on what the state takes.
pub const MAX_ENTRIES: usize = 1000;
/// Longest text of an entry. Names are short; a refusal may quote a path or a list.
const MAX_TEXT_BYTES: usize = 300;

/// The newest entries, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Audit(VecDeque<Arc<AuditEntry>>);

/// One thing that somebody asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Index of the log entry; of a deployment it is the revision's number.
    pub index: u64,
    pub origin: Origin,
    /// In one line.
    pub action: String,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

impl Audit {
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &AuditEntry> {
        self.0.iter().map(|entry| &**entry)
    }

    pub(super) fn note(&mut self, index: u64, mut origin: Origin, action: String, reply: &Reply) {
        if let Reply::Joined { peer } = reply {
            origin.by = peer.0.to_string();
        }
        let refusal = match reply {
            Reply::Refused(refusal) => Some(shortened(refusal.to_string())),
            _ => None,
        };
        self.0.push_back(Arc::new(AuditEntry {
            index,
            origin,
            action: shortened(action),
            refusal,
        }));
        if self.0.len() > MAX_ENTRIES {
            self.0.pop_front();
        }
    }
}

impl Command {
    /// Who caused this and what it does in one line; `None` for what the cluster does by itself.
    ///
    /// A command with an origin needs its line here to be in the trail.
    pub fn audited(&self) -> Option<(&Origin, String)> {
        match self {
            Self::RegisterNode { .. }
            | Self::MarkNode { .. }
            | Self::SetPlacement { .. }
            | Self::Advance { .. }
            | Self::SetPhase { .. }
            | Self::RaiseFormat { .. } => None,
            Self::Deploy { spec, origin, .. } => {
                let replicas: u64 = spec.stages.iter().map(|stage| u64::from(stage.replicas)).sum();
                let stages = spec.stages.len();
                let action = format!("deploy {} (stages: {stages}, replicas: {replicas})", spec.name);
                Some((origin, action))
            }
            Self::Rollback {
                pipeline, to, origin, ..
            } => {
                let to = to.map_or_else(
                    || "the revision before".into(),
                    |revision| format!("revision {revision}"),
                );
                Some((origin, format!("roll {pipeline} back to {to}")))
            }
            Self::Promote { pipeline, origin } => Some((origin, format!("promote the canary of {pipeline}"))),
            Self::Abort { pipeline, origin } => Some((origin, format!("abort the rollout of {pipeline}"))),
            Self::Scale {
                pipeline,
                replicas,
                origin,
            } => {
                let stages = replicas.iter().map(|(stage, count)| format!("{stage}={count}"));
                let stages = stages.collect::<Vec<_>>().join(" ");
                Some((origin, format!("scale {pipeline} {stages}")))
            }
            Self::SetTraffic {
                pipeline,
                weight,
                origin,
            } => Some((
                origin,
                format!("give the canary of {pipeline} {weight} % of the traffic"),
            )),
            Self::DrainNode {
                node,
                draining,
                origin,
            } => {
                let what = if *draining { "drain" } else { "undrain" };
                Some((origin, format!("{what} node {node}")))
            }
            Self::RemoveNode { node, origin } => Some((origin, format!("remove node {node}"))),
            Self::Delete { pipeline, origin } => Some((origin, format!("delete {pipeline}"))),
            Self::CreateToken { token, origin } => Some((origin, format!("create {token}"))),
            Self::UseToken { usage, origin } => Some((origin, format!("join with token {}", usage.id))),
            Self::RevokeToken { id, origin } => Some((origin, format!("revoke token {id}"))),
            Self::AddMember {
                member,
                address,
                origin,
            } => Some((origin, format!("add member {member} at {address}"))),
            Self::RemoveMember { member, origin } => Some((origin, format!("remove member {member}"))),
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    // One line each, whatever a name or a path may hold.
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use mosec_types::topology::NodeHealth;
    use mosec_types::{Incarnation, PipelineName};

    use super::*;
    use crate::fixtures::{model, node_id, pipeline, stage, up};
    use crate::state::apply;

    fn origin(at_unix_ms: u64) -> Origin {
        Origin {
            by: "ada".into(),
            at_unix_ms,
        }
    }

    fn delete(name: &str, at: u64) -> Command {
        Command::Delete {
            pipeline: PipelineName::new(name).unwrap(),
            origin: origin(at),
        }
    }

    #[test]
    fn what_people_do_is_kept_and_what_the_cluster_does_is_not() {
        let mut state = model(1, [up("a")], vec![]);
        let deploy = Command::Deploy {
            spec: Arc::new(pipeline("p", vec![stage("A", 2), stage("B", 1)])),
            healthy_deadline_ms: 1,
            origin: origin(5),
        };
        apply(&mut state, 7, deploy.into());
        let mark = Command::MarkNode {
            node: node_id("a"),
            incarnation: Incarnation(1),
            health: NodeHealth::Down,
        };
        apply(&mut state, 8, mark.into());
        apply(&mut state, 9, delete("q", 6).into());
        let expected = [
            AuditEntry {
                index: 7,
                origin: origin(5),
                action: "deploy p (stages: 2, replicas: 3)".into(),
                refusal: None,
            },
            AuditEntry {
                index: 9,
                origin: origin(6),
                action: "delete q".into(),
                refusal: Some("there is no pipeline q".into()),
            },
        ];
        assert_eq!(state.audit.entries().cloned().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_repeated_write_is_one_entry_and_the_oldest_go() {
        let mut state = model(1, [], vec![]);
        let once = crate::state::Proposal {
            command: delete("q", 1),
            dedup: Some(crate::state::Dedup {
                client: "c".into(),
                seq: 1,
            }),
        };
        apply(&mut state, 2, once.clone());
        apply(&mut state, 3, once);
        assert_eq!(state.audit.entries().len(), 1);
        for index in 4..1500 {
            apply(&mut state, index, delete("q", index).into());
        }
        assert_eq!(state.audit.entries().len(), MAX_ENTRIES);
        assert_eq!(state.audit.entries().next().map(|entry| entry.index), Some(500));
    }

    #[test]
    fn a_text_is_one_bounded_line() {
        assert_eq!(shortened("a\nb".into()), "a b");
        let long = shortened("é".repeat(400));
        assert!(long.len() <= MAX_TEXT_BYTES + 3 && long.ends_with('…'));
    }
}
