//! What a member should fetch and may remove. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use mosec_types::BundleId;

use super::store::Stored;

/// The difference between the bundles that a member should have and those that it has.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) fetch: Vec<BundleId>,
    pub(crate) remove: Vec<BundleId>,
}

/// `wanted`: what some remembered revision names. `grace`: how long a bundle stays that none does, as its revision may be on its way.
pub(crate) fn plan(stored: &[Stored], wanted: &BTreeSet<BundleId>, grace: Duration) -> Plan {
    let have: BTreeSet<_> = stored.iter().map(|stored| stored.id).collect();
    let useless = |stored: &&Stored| !wanted.contains(&stored.id) && stored.age >= grace;
    Plan {
        fetch: wanted.difference(&have).copied().collect(),
        remove: stored.iter().filter(useless).map(|stored| stored.id).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_fetched_and_what_is_old_and_unwanted_goes() {
        let id = |number| BundleId::from_digest([number; 32]);
        let stored = |number, age| Stored {
            id: id(number),
            age: Duration::from_secs(age),
        };
        let kept = [stored(1, 100), stored(2, 100), stored(3, 5)];
        let found = plan(&kept, &BTreeSet::from([id(1), id(9)]), Duration::from_secs(60));
        let expected = Plan {
            fetch: vec![id(9)],
            remove: vec![id(2)],
        };
        assert_eq!(found, expected);
        assert_eq!(plan(&[], &BTreeSet::new(), Duration::ZERO), Plan::default());
    }
}
