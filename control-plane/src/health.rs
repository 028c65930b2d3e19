//! Whether a member works, as whoever looks after its process should see it.

use std::sync::Arc;
use std::time::Duration;

use crate::raft::admission::Admission;
use crate::raft::elector::Heard;
use crate::raft::handle::Handle;

/// How long a member may know no leader until that is more than an election: with the default heartbeat one takes 1.4 s, and each
/// vain attempt half a second more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at a member.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) handle: Handle,
    pub(crate) heard: Arc<Heard>,
    pub(crate) admission: Arc<Admission>,
}

impl Health {
    /// Errors: why it does not work.
    pub(crate) fn check(&self) -> Result<(), String> {
        judge(self.stopped(), self.admission.is_level(), self.leaderless())
    }

    /// Whether it knows a leader, from whom it has heard lately.
    pub(crate) fn knows_leader(&self) -> bool {
        self.leaderless().is_some_and(|time| time < PATIENCE)
    }

    fn stopped(&self) -> bool {
        let raft = self.handle.raft.metrics();
        let failed = raft.borrow().running_state.is_err();
        failed || raft.has_changed().is_err()
    }

    /// How long it has known no leader; `None` where it never has.
    fn leaderless(&self) -> Option<Duration> {
        match self.handle.leading_term() {
            Some(_) => Some(Duration::ZERO),
            None => self.heard.leaderless(),
        }
    }
}

/// `leaderless`: how long no leader has been known; `None` where none ever was.
fn judge(stopped: bool, level: bool, leaderless: Option<Duration>) -> Result<(), String> {
    if stopped {
        return Err("raft has stopped".into());
    }
    if !level {
        return Err("it is not level with the other members yet, and takes no part in votes".into());
    }
    match leaderless {
        None => Err("it knows no leader yet: a majority of the members has to be there".into()),
        Some(time) if time >= PATIENCE => {
            let seconds = time.as_secs();
            Err(format!(
                "it has known no leader for {seconds} s: a majority of the members has to be there"
            ))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_says_why_it_does_not_work() {
        let short = Some(PATIENCE - Duration::from_millis(1));
        // Stopped, level, without a leader.
        let cases = [
            (false, true, Some(Duration::ZERO), None),
            (false, true, short, None),
            (false, true, Some(PATIENCE), Some("no leader for 10 s")),
            (false, true, None, Some("knows no leader yet")),
            (false, false, Some(Duration::ZERO), Some("not level")),
            (true, false, None, Some("raft has stopped")),
        ];
        for (stopped, level, leaderless, reason) in cases {
            let found = judge(stopped, level, leaderless).err();
            let is_it = |found: &String| reason.is_some_and(|reason| found.contains(reason));
            assert_eq!(found.as_ref().map(is_it), reason.map(|_| true), "{found:?}");
        }
    }
}
