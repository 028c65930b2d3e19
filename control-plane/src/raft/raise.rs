//! Raises the format of commands and state when every member supports a later one.
//!
//! The leader asks the others as long as it supports more than is in force: all that get the log, as one that cannot read
//! it would be lost. A member that does not answer holds the format back. Nobody is added meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::MemberId;
use super::describe::{Ask, Description, describe_all};
use super::handle::Handle;
use crate::state::{Command, Format, Formats};

/// How often the others are asked: an upgrade takes minutes, and what waits for the new format waits no longer than this
/// when it is over.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What follows from the answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// All support it.
    Raise(Format),
    /// This member does not, or does not say.
    HeldBack { by: MemberId, why: String },
    /// Nothing later is known here.
    Newest,
}

/// Decides from the members' answers. `own`: what the leader supports.
fn decide(in_force: Format, own: Formats, said: &BTreeMap<MemberId, Result<Description, String>>) -> Verdict {
    if own.max <= in_force {
        return Verdict::Newest;
    }
    let mut to = own.max;
    for (&by, answer) in said {
        match answer {
            Err(why) => {
                return Verdict::HeldBack { by, why: why.clone() };
            }
            Ok(said) if said.formats.max <= in_force => {
                return Verdict::HeldBack {
                    by,
                    why: format!("its build ({}) supports {}", said.build, said.formats),
                };
            }
            Ok(said) => to = to.min(said.formats.max),
        }
    }
    Verdict::Raise(to)
}

/// Does so while this member leads, until `stop`.
pub async fn run<A: Ask>(handle: Handle, cluster_id: String, own: Formats, ask: A, stop: CancellationToken) {
    let work = async {
        let mut told = None;
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let in_force = handle.model.borrow().format;
            if own.max <= in_force || handle.leading_term().is_none() {
                told = None;
                continue;
            }
            // Nobody joins between the answers and what follows from them.
            let _alone = handle.changes.lock().await;
            let others = handle.peers.others(handle.member);
            let said = describe_all(&ask, &cluster_id, others).await;
            match decide(in_force, own, &said) {
                Verdict::Newest => {}
                Verdict::HeldBack { by, why } => {
                    // Once for each reason: an upgrade under way is nothing to worry about.
                    let reason = Some((by, why));
                    if told != reason {
                        if let Some((by, why)) = &reason {
                            tracing::info!(member = by, why, %in_force, "a later format waits for a member");
                        }
                        told = reason;
                    }
                }
                Verdict::Raise(to) => match handle.propose(Command::RaiseFormat { to }.into()).await {
                    Ok(_) => {
                        tracing::info!(from = in_force.0, to = to.0, "all members support a later format")
                    }
                    Err(error) => tracing::warn!(%error, to = to.0, "the format could not be raised"),
                },
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(min: u8, max: u8) -> Formats {
        Formats {
            min: Format(min),
            max: Format(max),
        }
    }

    fn said(max: u8) -> Result<Description, String> {
        Ok(Description {
            cluster_id: "c".into(),
            member: 1,
            build: "1.2.3".into(),
            formats: formats(1, max),
            format: Format(1),
            is_level: true,
            signs: false,
            leader: None,
            last_applied: None,
            position: Default::default(),
        })
    }

    #[test]
    fn the_highest_that_all_support_comes_into_force() {
        let verdict = |in_force, own, answers: &[Result<Description, String>]| {
            let said = (2..).zip(answers.iter().cloned()).collect();
            decide(Format(in_force), formats(1, own), &said)
        };
        assert_eq!(
            verdict(1, 2, &[]),
            Verdict::Raise(Format(2)),
            "alone there is nobody to ask"
        );
        assert_eq!(verdict(1, 4, &[said(3), said(5)]), Verdict::Raise(Format(3)));
        assert_eq!(verdict(2, 2, &[said(5)]), Verdict::Newest);
        let held = |by, why: &str| Verdict::HeldBack { by, why: why.into() };
        assert_eq!(
            verdict(2, 3, &[said(3), said(2)]),
            held(3, "its build (1.2.3) supports formats 1 to 2")
        );
        assert_eq!(verdict(1, 2, &[Err("away".into()), said(2)]), held(2, "away"));
    }
}
