//! Whether a history of concurrent calls could have come from one copy of the state that does one call at a time.
//!
//! The search of Wing and Gong, with Lowe's memory of where it has been: of the calls that may come next, the likeliest
//! is taken first; what cannot be followed by the rest is taken back. A call without a known outcome may have had its
//! effect at any time after it began, or never.
//!
//! Sources: Wing and Gong, "Testing and Verifying Concurrent Objects", 1993; Lowe, "Testing for Linearizability", 2017.

use std::collections::HashSet;
use std::hash::Hash;

/// What one copy of the state would do.
pub trait Sequential {
    type State: Clone + Eq + Hash;
    type Op;

    fn initial(&self) -> Self::State;

    /// The state after `op`, if it can have its outcome in `state`.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// Whether `op` with its outcome changes nothing, whatever the state.
    fn only_looks(&self, _op: &Self::Op) -> bool {
        false
    }

    /// Where the call's place among others is known: it has happened, after all that have lower numbers.
    fn rank(&self, _op: &Self::Op) -> Option<u64> {
        None
    }

    /// Calls with a lower number are tried earlier. A good guess makes the search short, a bad one no less right.
    fn guess(&self, _op: &Self::Op) -> u64 {
        0
    }
}

/// A call as its client saw it. Times are places in the order of all beginnings and ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<O> {
    pub op: O,
    pub began: u64,
    /// Absent where the client never learned the outcome.
    pub ended: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains the history. `longest`: the calls that could be ordered, in the best attempt.
    Violation {
        longest: Vec<usize>,
    },
    /// Not decided within the steps allowed.
    Undecided {
        longest: Vec<usize>,
    },
}

/// Looks for an order of `calls` that `spec` allows, for at most `steps` steps with each number of guesses.
///
/// A call that nobody knows to have happened is a guess. Most have not, so orders with few of them are tried first.
pub fn check<S: Sequential>(spec: &S, calls: &[Call<S::Op>], steps: u64) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for guesses in (0..MANY_GUESSES).chain([usize::MAX]) {
        let mut search = Search::new(spec, calls, guesses);
        verdict = search.run(steps);
        let complete = !search.guesses_lacked && !matches!(verdict, Verdict::Undecided { .. });
        if verdict == Verdict::Linearizable || complete {
            break;
        }
    }
    verdict
}

/// Beyond so many guesses their number is no longer a help.
const MANY_GUESSES: usize = 6;

struct Search<'a, S: Sequential> {
    spec: &'a S,
    calls: &'a [Call<S::Op>],
    /// Calls whose outcome is known: all of them must be ordered.
    known: usize,
    ranks: Vec<Option<u64>>,
    done: Vec<bool>,
    seen: HashSet<(Vec<bool>, S::State)>,
    guesses_left: usize,
    /// A guess was not made for want of one.
    guesses_lacked: bool,
}

/// One call of the order, and what else could have come in its place.
struct Frame<T> {
    state: T,
    next: std::vec::IntoIter<usize>,
    taken: Option<usize>,
}

impl<'a, S: Sequential> Search<'a, S> {
    fn new(spec: &'a S, calls: &'a [Call<S::Op>], guesses: usize) -> Self {
        Self {
            spec,
            calls,
            known: calls.iter().filter(|call| call.ended.is_some()).count(),
            ranks: calls.iter().map(|call| spec.rank(&call.op)).collect(),
            done: vec![false; calls.len()],
            seen: HashSet::new(),
            guesses_left: guesses,
            guesses_lacked: false,
        }
    }

    fn is_guess(&self, call: usize) -> bool {
        self.calls[call].ended.is_none() && self.ranks[call].is_none()
    }

    fn run(&mut self, mut steps: u64) -> Verdict {
        let first = self.spec.initial();
        let mut stack = vec![Frame {
            next: self.candidates().into_iter(),
            state: first,
            taken: None,
        }];
        let (mut ordered, mut longest) = (0, (0, Vec::new()));
        if self.known == 0 {
            return Verdict::Linearizable;
        }
        while let Some(frame) = stack.last_mut() {
            if let Some(taken) = frame.taken.take() {
                self.done[taken] = false;
                ordered -= usize::from(self.calls[taken].ended.is_some());
                self.guesses_left += usize::from(self.is_guess(taken));
            }
            let Some(call) = frame.next.next() else {
                stack.pop();
                continue;
            };
            if steps == 0 {
                return Verdict::Undecided { longest: longest.1 };
            }
            steps -= 1;
            let Some(state) = self.spec.step(&frame.state, &self.calls[call].op) else {
                continue;
            };
            let known = self.calls[call].ended.is_some();
            // Without an outcome and without an effect it need not have happened.
            if !known && state == frame.state {
                continue;
            }
            let guess = self.is_guess(call);
            if guess && self.guesses_left == 0 {
                self.guesses_lacked = true;
                continue;
            }
            self.done[call] = true;
            if !self.seen.insert((self.done.clone(), state.clone())) {
                self.done[call] = false;
                continue;
            }
            frame.taken = Some(call);
            self.guesses_left -= usize::from(guess);
            if self.spec.only_looks(&self.calls[call].op) {
                // Nothing is gained by having it later.
                frame.next = Vec::new().into_iter();
            }
            ordered += usize::from(known);
            if ordered == self.known {
                return Verdict::Linearizable;
            }
            let next = self.candidates().into_iter();
            stack.push(Frame {
                state,
                next,
                taken: None,
            });
            if ordered > longest.0 {
                longest = (ordered, stack.iter().filter_map(|frame| frame.taken).collect());
            }
        }
        Verdict::Violation { longest: longest.1 }
    }

    /// Calls that may come next: those that began before every other one that is left had ended.
    fn candidates(&self) -> Vec<usize> {
        let left = || (0..self.calls.len()).filter(|&call| !self.done[call]);
        let first_end = left().filter_map(|call| self.calls[call].ended).min();
        let first_rank = left().filter_map(|call| self.ranks[call]).min();
        let mut next: Vec<_> = left()
            .filter(|&call| first_end.is_none_or(|end| self.calls[call].began < end))
            .filter(|&call| self.ranks[call].is_none_or(|rank| Some(rank) == first_rank))
            .collect();
        next.sort_by_key(|&call| {
            let Call { op, ended, .. } = &self.calls[call];
            (self.spec.guess(op), ended.unwrap_or(u64::MAX))
        });
        next
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
