//! Picks the target of a batch. Pure.

use crate::batch::Supply;

/// What the pick sees of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Ready replicas there.
    pub replicas: u32,
    /// Batches that may be outstanding there.
    pub limit: u32,
    /// Batches that are.
    pub outstanding: u32,
}

impl Load {
    /// The credit a batch would take here.
    pub fn supply(self) -> Supply {
        if self.free() == 0 {
            Supply::None
        } else if self.outstanding < self.replicas {
            Supply::Idle
        } else {
            Supply::Prefetch
        }
    }

    /// Batches that may be sent here now.
    pub fn free(self) -> u32 {
        match self.replicas {
            0 => 0,
            _ => self.limit.saturating_sub(self.outstanding),
        }
    }

    /// Whether this target has less work for each replica than `other`.
    fn is_below(self, other: Self) -> bool {
        u64::from(self.outstanding) * u64::from(other.replicas)
            < u64::from(other.outstanding) * u64::from(self.replicas)
    }
}

/// The best credit among `targets`.
pub fn best_supply(targets: &[Load]) -> Supply {
    let mut best = Supply::None;
    for target in targets {
        match target.supply() {
            Supply::Idle => return Supply::Idle,
            Supply::Prefetch => best = Supply::Prefetch,
            Supply::None => {}
        }
    }
    best
}

/// Picks the less loaded of two targets drawn at random from those with the best credit; `None` if none has any.
///
/// `targets`: all of a stage's. `draws`: two random numbers. Load counts outstanding batches for each ready replica, so
/// a node with many replicas gets its share. O(n), no allocation.
///
/// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.
pub fn pick(targets: &[Load], draws: [u32; 2]) -> Option<usize> {
    let best = best_supply(targets);
    if best == Supply::None {
        return None;
    }
    let candidates = || {
        targets
            .iter()
            .enumerate()
            .filter(|(_, target)| target.supply() == best)
    };
    let count = u32::try_from(candidates().count()).ok()?;
    let nth = |n: u32| candidates().nth(n as usize);
    let first = draws[0] % count;
    let (one, one_load) = nth(first)?;
    if count == 1 {
        return Some(one);
    }
    // The second draw is among the others, so the two differ.
    let second = (first + 1 + draws[1] % (count - 1)) % count;
    let (two, two_load) = nth(second)?;
    Some(if two_load.is_below(*one_load) { two } else { one })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(replicas: u32, limit: u32, outstanding: u32) -> Load {
        Load {
            replicas,
            limit,
            outstanding,
        }
    }

    #[test]
    fn supply_table() {
        for (load, expected) in [
            (load(0, 0, 0), Supply::None),
            (load(0, 4, 0), Supply::None),
            (load(2, 4, 0), Supply::Idle),
            (load(2, 4, 1), Supply::Idle),
            (load(2, 4, 2), Supply::Prefetch),
            (load(2, 4, 4), Supply::None),
            (load(2, 4, 9), Supply::None),
        ] {
            assert_eq!(load.supply(), expected, "{load:?}");
        }
    }

    #[test]
    fn the_less_loaded_of_two_wins_whatever_the_draw() {
        let targets = [load(1, 9, 5), load(1, 9, 3)];
        for draws in [[0, 0], [1, 0], [7, 9], [u32::MAX, u32::MAX]] {
            assert_eq!(pick(&targets, draws), Some(1));
        }
    }

    #[test]
    fn load_is_for_each_replica() {
        // 6 of 4 replicas is less than 2 of 1.
        assert_eq!(pick(&[load(1, 9, 2), load(4, 9, 6)], [0, 0]), Some(1));
    }

    #[test]
    fn an_idle_target_beats_a_prefetch() {
        let targets = [load(1, 9, 1), load(1, 9, 0), load(0, 9, 0)];
        for draws in [[0, 0], [1, 1], [2, 5]] {
            assert_eq!(pick(&targets, draws), Some(1));
        }
    }

    proptest! {
        #[test]
        fn a_pick_has_the_best_credit(
            raw in prop::collection::vec((0u32..4, 0u32..8, 0u32..8), 0..12),
            draws in any::<[u32; 2]>(),
        ) {
            let targets: Vec<_> = raw.into_iter().map(|(r, l, o)| load(r, l, o)).collect();
            let best = best_supply(&targets);
            match pick(&targets, draws) {
                Some(index) => {
                    prop_assert_ne!(best, Supply::None);
                    prop_assert_eq!(targets[index].supply(), best);
                }
                None => prop_assert_eq!(best, Supply::None),
            }
        }
    }
}
