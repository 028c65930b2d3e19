//! Who waits for the output of workers, and which agents have yet to send it. In the leader's memory.
//!
//! A person's call adds a question ([`Relay::ask`]). Each agent's stream of heartbeats tells it of the questions that are for it
//! ([`Relay::wanted`]), and the agent opens a stream of its own for each answer ([`Relay::begin`]). What comes over it goes
//! through one bounded channel to the one who asked: who is slow holds up the agents' streams to them, where lines are lost
//! and counted, and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mosec_types::NodeId;
use mosec_wire::control::proto;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Most questions at a time, each of which is a stream from each agent: a team at its screens.
pub(crate) const MAX_QUESTIONS: usize = 16;
/// Chunks on their way to one who asked: 2 MiB.
const MAX_PARTS: usize = 16;

/// What becomes of a node's answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    Output(proto::NodeOutput),
    /// Everything that was there at the beginning has come.
    CaughtUp(NodeId),
    /// Output is missing, for this reason.
    Problem(NodeId, String),
}

/// What somebody asks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    pub(crate) query: proto::LogsQuery,
    /// The nodes that are asked. Where the question follows and names none, those that come later are asked too.
    pub(crate) nodes: BTreeSet<NodeId>,
    pub(crate) every_node: bool,
    pub(crate) seen: Vec<proto::LogsPosition>,
    /// The one who asks has read before what there was at the beginning.
    pub(crate) caught_up: bool,
}

/// The questions there are. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Relay(Arc<Shared>);

struct Shared {
    open: Mutex<BTreeMap<u64, Open>>,
    news: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            news: watch::Sender::new(()),
        }
    }
}

struct Open {
    question: Question,
    parts: mpsc::Sender<Part>,
    /// Ends all answers. An answer that has nothing to send would not notice otherwise, and keep the channel open.
    over: CancellationToken,
    answering: BTreeSet<NodeId>,
    /// Those that have sent all they had, and whose workers without a position are new.
    caught_up: BTreeSet<NodeId>,
    /// Those that need not be asked again.
    answered: BTreeSet<NodeId>,
}

impl Open {
    fn wants(&self, node: &NodeId) -> bool {
        let Question {
            query,
            nodes,
            every_node,
            ..
        } = &self.question;
        let is_asked = nodes.contains(node) || (query.follow && *every_node);
        is_asked && !self.answering.contains(node) && !self.answered.contains(node)
    }

    /// Whether all that a node has, and that has no position, began after the question.
    fn has_caught_up(&self, node: &NodeId) -> bool {
        let is_new = !self.question.nodes.contains(node);
        self.question.caught_up || is_new || self.caught_up.contains(node)
    }
}

impl Relay {
    /// Adds a question; `None` where there are too many.
    pub(crate) fn ask(&self, question: Question) -> Option<Asker> {
        let mut open = self.0.open.lock();
        if open.len() >= MAX_QUESTIONS {
            return None;
        }
        // At random: an agent that answers a member's earlier run must not answer another question.
        let id = rand::rng().random();
        let (sender, parts) = mpsc::channel(MAX_PARTS);
        open.insert(
            id,
            Open {
                question,
                parts: sender,
                over: CancellationToken::new(),
                answering: BTreeSet::new(),
                caught_up: BTreeSet::new(),
                answered: BTreeSet::new(),
            },
        );
        drop(open);
        self.0.news.send_replace(());
        Some(Asker {
            relay: self.clone(),
            id,
            parts,
        })
    }

    /// Changes whenever there may be something new for an agent.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// The questions that a node has not begun to answer.
    pub(crate) fn wanted(&self, node: &NodeId) -> Vec<proto::LogsWanted> {
        let open = self.0.open.lock();
        let mine = open.iter().filter(|(_, open)| open.wants(node));
        let seen = |open: &Open| -> Vec<_> {
            let seen = open.question.seen.iter();
            seen.filter(|seen| seen.node == node.as_str()).cloned().collect()
        };
        mine.map(|(&id, open)| proto::LogsWanted {
            id,
            query: Some(open.question.query.clone()),
            seen: seen(open),
            caught_up: open.has_caught_up(node),
        })
        .collect()
    }

    /// A node begins its answer; `None` where nobody waits for it.
    pub(crate) fn begin(&self, id: u64, node: &NodeId) -> Option<Answering> {
        let mut open = self.0.open.lock();
        let asked = open.get_mut(&id).filter(|open| open.wants(node))?;
        asked.answering.insert(node.clone());
        Some(Answering {
            relay: self.clone(),
            id,
            node: node.clone(),
            parts: asked.parts.clone(),
            over: asked.over.clone(),
        })
    }

    /// Ends a question and all answers to it, be it that the one who asked still waits.
    fn end(&self, id: u64) {
        let ended = self.0.open.lock().remove(&id);
        if let Some(ended) = ended {
            ended.over.cancel();
        }
    }
}

/// Somebody who waits. Dropping it ends the question.
pub(crate) struct Asker {
    relay: Relay,
    id: u64,
    pub(crate) parts: mpsc::Receiver<Part>,
}

impl Asker {
    /// Whether a node has begun to answer and is not done.
    pub(crate) fn is_answered_by(&self, node: &NodeId) -> bool {
        let open = self.relay.0.open.lock();
        open.get(&self.id)
            .is_some_and(|open| open.answering.contains(node))
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.relay.end(self.id);
    }
}

/// A node that answers. Once it is dropped, the node is asked again where the question follows.
pub(crate) struct Answering {
    relay: Relay,
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    pub(crate) parts: mpsc::Sender<Part>,
    /// Cancelled when nobody waits for it any more. The one who asked hears of it once every answer has been dropped.
    pub(crate) over: CancellationToken,
}

impl Answering {
    /// Whether an answer with everything that was there is all that is wanted.
    pub(crate) fn is_complete(&self) -> bool {
        let open = self.relay.0.open.lock();
        open.get(&self.id).is_none_or(|open| !open.question.query.follow)
    }

    /// Notes that the node has sent all it had.
    pub(crate) fn has_caught_up(&self) {
        if let Some(open) = self.relay.0.open.lock().get_mut(&self.id) {
            open.caught_up.insert(self.node.clone());
        }
    }

    /// Ends the question.
    pub(crate) fn give_up(&self) {
        self.relay.end(self.id);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(open) = self.relay.0.open.lock().get_mut(&self.id) {
            open.answering.remove(&self.node);
            if !open.question.query.follow {
                open.answered.insert(self.node.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::node_id;

    fn question(follow: bool, nodes: &[&str]) -> Question {
        Question {
            query: proto::LogsQuery {
                pipeline: "p".into(),
                follow,
                ..Default::default()
            },
            nodes: nodes.iter().map(|name| node_id(name)).collect(),
            every_node: true,
            seen: ["a", "b"]
                .map(|node| proto::LogsPosition {
                    node: node.into(),
                    next: 7,
                    ..Default::default()
                })
                .into(),
            caught_up: false,
        }
    }

    #[test]
    fn a_node_is_asked_until_it_answers_and_once() {
        let relay = Relay::default();
        let asker = relay.ask(question(false, &["a", "b"])).unwrap();
        let (a, c) = (node_id("a"), node_id("c"));
        let wanted = relay.wanted(&a);
        assert_eq!(wanted, relay.wanted(&a), "it may have been lost");
        assert_eq!(wanted[0].seen.len(), 1, "its own positions alone");
        assert!(relay.wanted(&c).is_empty() && relay.begin(wanted[0].id, &c).is_none());
        let answering = relay.begin(wanted[0].id, &a).unwrap();
        assert!(asker.is_answered_by(&a) && !asker.is_answered_by(&node_id("b")));
        assert!(relay.wanted(&a).is_empty());
        assert!(relay.begin(wanted[0].id, &a).is_none(), "one answer of each");
        drop(answering);
        assert!(relay.wanted(&a).is_empty(), "it has answered");
        drop(asker);
        assert!(relay.wanted(&node_id("b")).is_empty(), "nobody waits any more");
    }

    #[test]
    fn who_follows_hears_of_nodes_that_come_later_or_come_back() {
        let relay = Relay::default();
        let asker = relay.ask(question(true, &["a"])).unwrap();
        for name in ["a", "c"] {
            let node = node_id(name);
            let id = relay.wanted(&node)[0].id;
            drop(relay.begin(id, &node).unwrap());
            assert_eq!(relay.wanted(&node).len(), 1, "its stream broke off");
        }
        drop(asker);
        let mut one = question(true, &["a"]);
        one.every_node = false;
        let _asker = relay.ask(one).unwrap();
        assert!(relay.wanted(&node_id("c")).is_empty());
    }

    #[test]
    fn nodes_are_told_whether_their_workers_are_new_to_the_one_who_asked() {
        let relay = Relay::default();
        let is_told = |name: &str| relay.wanted(&node_id(name))[0].caught_up;
        let asker = relay.ask(question(true, &["a", "b"])).unwrap();
        assert!(!is_told("a") && !is_told("b"));
        assert!(is_told("c"), "it came later, and its workers with it");
        for (name, catches_up) in [("a", true), ("b", false)] {
            let node = node_id(name);
            let answering = relay.begin(relay.wanted(&node)[0].id, &node).unwrap();
            if catches_up {
                answering.has_caught_up();
            }
        }
        assert!(is_told("a") && !is_told("b"), "of before their streams broke off");
        drop(asker);
        let mut again = question(true, &["a"]);
        again.caught_up = true;
        let _asker = relay.ask(again).unwrap();
        assert!(is_told("a"));
    }

    #[test]
    fn questions_are_bounded() {
        let relay = Relay::default();
        let mut askers: Vec<_> = (0..MAX_QUESTIONS)
            .map(|_| relay.ask(question(true, &[])).unwrap())
            .collect();
        assert!(relay.ask(question(true, &[])).is_none());
        askers.pop();
        assert!(relay.ask(question(true, &[])).is_some());
    }
}
