//! Raises the format of commands and state when every member supports a later one.
//!
//! The leader asks the others as long as it supports more than is in force: all that get the log, as one that cannot read
//! it would be lost. A member that does not answer holds the format back, and so does one that is added in the meantime.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::MemberId;
use super::describe::{ASK_FOR, Ask};
use super::handle::Handle;
use crate::state::{Command, Format, Formats};

/// How often the others are asked: an upgrade takes minutes, and what waits for the new format waits no longer than this
/// when it is over.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What a member says of its build.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    formats: Formats,
    build: String,
}

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
fn decide(in_force: Format, own: Formats, said: &BTreeMap<MemberId, Result<Said, String>>) -> Verdict {
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
pub async fn run<A: Ask>(handle: Handle, own: Formats, ask: A, stop: CancellationToken) {
    let work = async {
        let mut told = None;
        loop {
            tokio::time::sleep(ASK_EVERY).await;
            let in_force = handle.model.borrow().format;
            if own.max <= in_force || handle.leading_term().is_none() {
                told = None;
                continue;
            }
            let said = ask_all(&handle, &ask).await;
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

/// The answers of all other members, voters or not.
async fn ask_all<A: Ask>(handle: &Handle, ask: &A) -> BTreeMap<MemberId, Result<Said, String>> {
    let membership = handle.raft.metrics().borrow().membership_config.clone();
    let others = membership.nodes().filter(|(id, _)| **id != handle.member);
    let questions = others.map(|(&id, node)| async move {
        let address = handle.peers.address(id, &node.addr);
        let answer = match tokio::time::timeout(ASK_FOR, ask.describe(address)).await {
            Ok(Ok(answer)) if answer.member == id => Ok(Said {
                formats: answer.formats,
                build: answer.build,
            }),
            Ok(Ok(answer)) => Err(format!("member {} answers at {address}", answer.member)),
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err("it does not answer".to_owned()),
        };
        (id, answer)
    });
    join_all(questions).await.into_iter().collect()
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

    fn said(max: u8) -> Result<Said, String> {
        Ok(Said {
            formats: formats(1, max),
            build: "1.2.3".into(),
        })
    }

    #[test]
    fn the_highest_that_all_support_comes_into_force() {
        let verdict = |in_force, own, answers: &[Result<Said, String>]| {
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
