//! Which blocks of a segment are free: a buddy allocator whose state stays with the agent.
//!
//! A complete binary tree; each node knows the order of the largest free block below it. Taking and returning a block
//! walk one path: no list, no allocation, and two free halves are one block again at once.

/// Smallest block. An answer of a batch of one fits with its table.
pub(crate) const MIN_BLOCK_BYTES: usize = 1024;

/// Largest block, and segment: offsets and lengths in descriptors are 32 bits wide.
const MAX_ORDER: u8 = 21;
pub(crate) const MAX_BLOCK_BYTES: usize = MIN_BLOCK_BYTES << MAX_ORDER;

/// Blocks of one segment. A block of order `n` has `MIN_BLOCK_BYTES << n` bytes.
#[derive(Debug, Clone)]
pub(crate) struct Buddy {
    /// Node 1 is the root, `2n` and `2n + 1` are the halves of `n`. One more than the largest free order, or zero.
    tree: Vec<u8>,
    top: u8,
}

/// The order of the smallest block that holds `bytes`; `None` where it does not exist.
pub(crate) fn order_of(bytes: usize) -> Option<u8> {
    let blocks = bytes
        .div_ceil(MIN_BLOCK_BYTES)
        .max(1)
        .checked_next_power_of_two()?;
    u8::try_from(blocks.trailing_zeros())
        .ok()
        .filter(|&order| order <= MAX_ORDER)
}

/// Bytes of a block of `order`.
pub(crate) fn block_bytes(order: u8) -> usize {
    MIN_BLOCK_BYTES << order
}

impl Buddy {
    /// All of a segment of `block_bytes(top)` bytes, free.
    pub(crate) fn new(top: u8) -> Self {
        let mut tree = vec![0; 2 << top];
        for (node, largest) in tree.iter_mut().enumerate().skip(1) {
            let depth = u8::try_from(node.ilog2()).expect("a tree of usize nodes is at most 64 deep");
            *largest = top - depth + 1;
        }
        Self { tree, top }
    }

    /// Takes a block of `order`; returns its offset in bytes.
    pub(crate) fn take(&mut self, order: u8) -> Option<usize> {
        let wanted = order + 1;
        if self.tree[1] < wanted {
            return None;
        }
        let mut node = 1;
        for _ in order..self.top {
            // The half that fits more tightly, so that large blocks stay whole.
            let (left, right) = (self.tree[2 * node], self.tree[2 * node + 1]);
            let go_left = left >= wanted && (right < wanted || left <= right);
            node = 2 * node + usize::from(!go_left);
        }
        self.tree[node] = 0;
        self.refresh_above(node, order);
        Some((node << order) * MIN_BLOCK_BYTES - block_bytes(self.top))
    }

    /// Returns a block that [`Buddy::take`] gave out.
    pub(crate) fn give_back(&mut self, offset: usize, order: u8) {
        let node = ((offset + block_bytes(self.top)) / MIN_BLOCK_BYTES) >> order;
        debug_assert_eq!(self.tree[node], 0, "a block is returned once");
        self.tree[node] = order + 1;
        self.refresh_above(node, order);
    }

    fn refresh_above(&mut self, mut node: usize, mut order: u8) {
        while node > 1 {
            node /= 2;
            order += 1;
            let (left, right) = (self.tree[2 * node], self.tree[2 * node + 1]);
            let both_free = left == order && right == order;
            self.tree[node] = if both_free { order + 1 } else { left.max(right) };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn orders_hold_their_bytes() {
        for (bytes, order) in [(0, 0), (1, 0), (1024, 0), (1025, 1), (2048, 1), (1 << 20, 10)] {
            assert_eq!(order_of(bytes), Some(order), "{bytes}");
        }
        assert_eq!(order_of(MAX_BLOCK_BYTES), Some(MAX_ORDER));
        assert_eq!(
            (order_of(MAX_BLOCK_BYTES + 1), order_of(usize::MAX)),
            (None, None)
        );
    }

    #[test]
    fn a_full_segment_refuses_until_a_block_returns() {
        let mut buddy = Buddy::new(2);
        let blocks: Vec<_> = (0..4).map(|_| buddy.take(0).unwrap()).collect();
        assert_eq!(blocks, [0, 1024, 2048, 3072]);
        assert_eq!(buddy.take(0), None);
        buddy.give_back(1024, 0);
        assert_eq!(buddy.take(1), None, "the other half of the pair is taken");
        buddy.give_back(0, 0);
        assert_eq!(buddy.take(1), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Against a plain list of what is out: blocks never overlap, lie inside, and add up to the whole again.
        #[test]
        fn blocks_are_apart_and_all_come_back(
            steps in prop::collection::vec((any::<bool>(), 0_u8..7, any::<prop::sample::Index>()), 1..200),
        ) {
            const TOP: u8 = 6;
            let mut buddy = Buddy::new(TOP);
            let mut out: Vec<(usize, u8)> = Vec::new();
            for (take, order, which) in steps {
                if take {
                    if let Some(offset) = buddy.take(order) {
                        let end = offset + block_bytes(order);
                        prop_assert!(end <= block_bytes(TOP) && offset % block_bytes(order) == 0);
                        for &(other, other_order) in &out {
                            prop_assert!(end <= other || other + block_bytes(other_order) <= offset);
                        }
                        out.push((offset, order));
                    } else {
                        // Refused for a reason: no aligned place of that size is free of blocks.
                        let size = block_bytes(order);
                        let free = (0..block_bytes(TOP)).step_by(size).any(|at| {
                            out.iter().all(|&(o, k)| at + size <= o || o + block_bytes(k) <= at)
                        });
                        prop_assert!(!free);
                    }
                } else if !out.is_empty() {
                    let (offset, order) = out.swap_remove(which.index(out.len()));
                    buddy.give_back(offset, order);
                }
            }
            for (offset, order) in out {
                buddy.give_back(offset, order);
            }
            prop_assert_eq!(buddy.take(TOP), Some(0));
        }
    }
}
