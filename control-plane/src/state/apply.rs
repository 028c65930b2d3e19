//! Applies commands to the state.

use mosec_types::Revision;
use mosec_types::topology::{Node, NodeHealth};

use super::command::{Command, Dedup, Proposal, Refusal, Reply};
use super::history::{Outcome, Record};
use super::model::{LastWrite, MAX_CLIENTS, Model};
use super::tokens::{self, Peer};
use super::{nodes, revisions, rollouts};

/// Applies the proposal logged at `index`.
pub fn apply(model: &mut Model, index: u64, proposal: Proposal) -> Reply {
    let Some(dedup) = proposal.dedup else {
        return apply_command(model, index, proposal.command);
    };
    match model.clients.get(&dedup.client) {
        Some(last) if last.seq == dedup.seq => last.reply.clone(),
        Some(last) if last.seq > dedup.seq => Reply::Refused(Refusal::StaleWrite {
            seq: dedup.seq,
            last: last.seq,
        }),
        _ => {
            let reply = apply_command(model, index, proposal.command);
            remember(model, index, dedup, reply.clone());
            reply
        }
    }
}

fn remember(model: &mut Model, index: u64, dedup: Dedup, reply: Reply) {
    model.clients.insert(
        dedup.client,
        LastWrite {
            seq: dedup.seq,
            index,
            reply,
        },
    );
    while model.clients.len() > MAX_CLIENTS {
        let oldest = model
            .clients
            .iter()
            .min_by_key(|(_, last)| last.index)
            .map(|(client, _)| client.clone());
        oldest.and_then(|client| model.clients.remove(&client));
    }
}

/// Applies a command, and takes note of it where a person caused it.
fn apply_command(model: &mut Model, index: u64, command: Command) -> Reply {
    let audited = command.audited().map(|(origin, action)| (origin.clone(), action));
    let reply = carry_out(model, index, command);
    if let Some((origin, action)) = audited {
        model.audit.note(index, origin, action, &reply);
    }
    reply
}

fn carry_out(model: &mut Model, index: u64, command: Command) -> Reply {
    let outcome = match command {
        Command::RegisterNode {
            id,
            incarnation,
            address,
            labels,
            capacity,
            build,
        } => nodes::register(
            model,
            Node {
                id,
                incarnation,
                address,
                health: NodeHealth::Up,
                labels,
                draining: false,
                capacity,
                build,
            },
        ),
        Command::MarkNode {
            node,
            incarnation,
            health,
        } => nodes::mark(model, &node, incarnation, health),
        Command::Deploy {
            spec,
            healthy_deadline_ms,
            origin,
        } => revisions::deploy(
            model,
            healthy_deadline_ms,
            Record {
                revision: Revision(index),
                spec,
                origin,
                rollback_of: None,
                outcome: Outcome::Starting,
            },
            false,
        ),
        Command::Rollback {
            pipeline,
            to,
            healthy_deadline_ms,
            origin,
            at_once,
        } => revisions::earlier(model, &pipeline, to).and_then(|earlier| {
            let record = Record {
                revision: Revision(index),
                spec: earlier.spec,
                origin,
                rollback_of: Some(earlier.revision),
                outcome: Outcome::Starting,
            };
            revisions::deploy(model, healthy_deadline_ms, record, at_once)
        }),
        Command::SetPlacement {
            revision,
            places,
            based_on,
        } => revisions::set_placement(model, revision, &places, based_on),
        Command::SetPhase { revision, phase } => revisions::set_phase(model, revision, phase),
        Command::Advance {
            revision,
            step,
            based_on,
        } => rollouts::advance(model, revision, step, based_on),
        Command::Promote { pipeline, .. } => rollouts::promote(model, &pipeline),
        Command::Abort { pipeline, origin } => rollouts::abort(model, &pipeline, &origin),
        Command::Scale {
            pipeline, replicas, ..
        } => rollouts::scale(model, &pipeline, &replicas),
        Command::SetTraffic { pipeline, weight, .. } => rollouts::set_traffic(model, &pipeline, weight),
        Command::DrainNode { node, draining, .. } => nodes::drain(model, &node, draining),
        Command::RemoveNode { node, .. } => nodes::remove(model, &node),
        Command::Delete { pipeline, .. } => revisions::delete(model, &pipeline),
        Command::CreateToken { token, origin } => model
            .tokens
            .create(*token, origin)
            .map(|()| Effect::Aside)
            .map_err(Refusal::from),
        Command::UseToken { usage, origin } => {
            let joined = tokens::join(model, &usage, origin.at_unix_ms);
            joined.map(Effect::Joined).map_err(Refusal::from)
        }
        Command::RevokeToken { id, origin } => model
            .tokens
            .revoke(&id, origin)
            .map(|()| Effect::Aside)
            .map_err(Refusal::from),
        Command::AddMember { .. } => Ok(Effect::Aside),
        Command::RemoveMember { member, .. } => {
            model.retired_members.insert(member);
            Ok(Effect::Aside)
        }
        Command::RaiseFormat { to } if to > model.format => {
            model.format = to;
            Ok(Effect::Aside)
        }
        Command::RaiseFormat { .. } => Ok(Effect::Void),
    };
    match outcome {
        Ok(Effect::Changed) => {
            model.version = index;
            Reply::Done { version: index }
        }
        Ok(Effect::Deployed) => {
            model.version = index;
            Reply::Deployed {
                revision: Revision(index),
            }
        }
        Ok(Effect::Joined(peer)) => Reply::Joined { peer },
        // A node that registers twice has its answer in the version that is there.
        Ok(Effect::Same | Effect::Aside) => Reply::Done {
            version: model.version,
        },
        Ok(Effect::Void) => Reply::Void,
        Err(refusal) => Reply::Refused(refusal),
    }
}

pub(super) enum Effect {
    Changed,
    Deployed,
    /// Already so.
    Same,
    /// Something changed that no topology shows.
    Aside,
    Joined(Peer),
    /// The condition no longer held.
    Void,
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
