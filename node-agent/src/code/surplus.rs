//! Which of the things kept for later are too many. Pure.

use std::time::Duration;

/// Something that nothing needs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idle {
    pub(crate) name: String,
    /// Since it was used last.
    pub(crate) since: Duration,
    pub(crate) bytes: u64,
}

/// How much is kept that nothing needs: a rollback finds the code of the last revisions here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    pub(crate) count: usize,
    pub(crate) bytes: u64,
}

/// The names of what is too much. What was used last stays longest.
pub(crate) fn surplus(mut idle: Vec<Idle>, keep: Keep) -> Vec<String> {
    idle.sort_by(|one, other| {
        one.since
            .cmp(&other.since)
            .then_with(|| one.name.cmp(&other.name))
    });
    let mut bytes = 0u64;
    let too_much = |(index, idle): (usize, Idle)| {
        bytes = bytes.saturating_add(idle.bytes);
        (index >= keep.count || bytes > keep.bytes).then_some(idle.name)
    };
    idle.into_iter().enumerate().filter_map(too_much).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_few_stay_within_their_bytes() {
        let idle = |name: &str, since, bytes| Idle {
            name: name.into(),
            since: Duration::from_secs(since),
            bytes,
        };
        let keep = Keep { count: 3, bytes: 100 };
        let of = |idle: &[Idle]| surplus(idle.to_vec(), keep);
        assert_eq!(of(&[]), [""; 0]);
        let few = [idle("a", 9, 10), idle("b", 1, 10), idle("c", 5, 10)];
        assert_eq!(of(&few), [""; 0]);
        let many = [few.as_slice(), &[idle("d", 7, 10)]].concat();
        assert_eq!(of(&many), ["a"], "the one used longest ago");
        let large = [idle("old", 9, 10), idle("new", 1, 95)];
        assert_eq!(of(&large), ["old"]);
        assert_eq!(of(&[idle("huge", 0, 101)]), ["huge"]);
    }
}
