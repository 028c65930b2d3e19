//! What a gateway has seen of a revision's requests.

use serde::{Deserialize, Serialize};

use crate::rollout::{Bounds, WHOLE};

/// Requests of one revision since their gateway started. Grows only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Requests that were answered, refusals for want of room left out.
    pub requests: u64,
    /// Those of them that failed for the service's or the cluster's fault.
    pub errors: u64,
    /// Those that took longer than the bound of the revision's rollout.
    pub slow: u64,
}

/// What bounds say about counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Held,
    /// There are fewer requests than the bounds want to see.
    TooFew,
    Broken(String),
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        self.slow = self.slow.saturating_add(other.slow);
    }
}

impl Counts {
    /// Holds the counts against bounds.
    pub fn judge(&self, bounds: &Bounds) -> Verdict {
        if bounds.is_empty() {
            return Verdict::Held;
        }
        let Self {
            requests,
            errors,
            slow,
        } = *self;
        if requests < u64::from(bounds.min_requests) {
            return Verdict::TooFew;
        }
        // In 128 bits nothing of this is too large.
        let (all, whole) = (u128::from(requests), u128::from(WHOLE));
        if let Some(most) = bounds.max_errors
            && u128::from(errors) * whole > all * u128::from(most)
        {
            let percent = |parts: u128| parts as f64 / whole as f64 * 100.0;
            let found = percent(u128::from(errors) * whole / all.max(1));
            let most = percent(most.into());
            return Verdict::Broken(format!(
                "{errors} of {requests} requests failed ({found:.2}%), more than max_error_rate allows ({most}%)"
            ));
        }
        if let Some(most) = bounds.max_p99
            && u128::from(slow) * 100 > all
        {
            return Verdict::Broken(format!(
                "{slow} of {requests} requests took longer than {most:?}, more than one in a hundred as max_p99 allows"
            ));
        }
        Verdict::Held
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn bounds_are_held_or_broken() {
        let counts = |requests, errors, slow| Counts {
            requests,
            errors,
            slow,
        };
        let bounds = Bounds {
            max_errors: Some(100),
            max_p99: Some(Duration::from_millis(500)),
            min_requests: 50,
        };
        let judge = |requests, errors, slow| counts(requests, errors, slow).judge(&bounds);
        assert_eq!(judge(49, 49, 49), Verdict::TooFew);
        assert_eq!(judge(1000, 10, 10), Verdict::Held);
        let Verdict::Broken(why) = judge(1000, 11, 0) else {
            panic!()
        };
        assert_eq!(
            why,
            "11 of 1000 requests failed (1.10%), more than max_error_rate allows (1%)"
        );
        let Verdict::Broken(why) = judge(1000, 0, 11) else {
            panic!()
        };
        assert!(
            why.starts_with("11 of 1000 requests took longer than 500ms"),
            "{why}"
        );
        assert_eq!(counts(0, 0, 0).judge(&Bounds::default()), Verdict::Held);
        assert!(matches!(judge(u64::MAX, u64::MAX, 0), Verdict::Broken(_)));
    }
}
