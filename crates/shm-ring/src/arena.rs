//! Hot path. The node-wide memory that payloads lie in, and the loans of it.
//!
//! The agent alone allocates, from state in its private memory, so a worker that dies or runs wild cannot break the
//! allocator. The arena grows by whole segments, each twice the one before, as fresh shared memory costs time: about
//! 0.25 ms a MiB, spent by the caller whose request found no room. It never shrinks; `max_bytes` bounds it.
//!
//! Capacity is a value: dropping an [`Extent`], or the last [`Slice`] of one, returns its block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::buddy::{Buddy, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES, block_bytes, order_of};
use crate::descriptor::Region;
use crate::segment::{OutOfBounds, Segment, SegmentError, ShmConfig};

/// Most segments of an arena: bounds what a worker maps. Doubling gets nowhere near it.
pub(crate) const MAX_SEGMENTS: usize = 256;
/// How long a failed growth keeps others from trying: each try may fill the machine before it fails.
const GROWTH_PAUSE: Duration = Duration::from_secs(1);

/// How large the arena is and where its memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Made at the start; rounded up to a power of two.
    pub initial_bytes: usize,
    /// Bound of all segments together.
    pub max_bytes: usize,
    pub shm: ShmConfig,
}

impl Default for ArenaConfig {
    /// 16 MiB holds a few hundred small batches; 1 GiB bounds what a node gives to payloads in flight.
    fn default() -> Self {
        Self {
            initial_bytes: 16 << 20,
            max_bytes: 1 << 30,
            shm: ShmConfig::default(),
        }
    }
}

/// The arena has no block of the size wanted and cannot grow by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {wanted_bytes} bytes in shared memory: {used_bytes} of at most {max_bytes} bytes are in use"
)]
pub struct ArenaFull {
    pub wanted_bytes: usize,
    pub used_bytes: usize,
    pub max_bytes: usize,
}

/// The arena in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ArenaStats {
    pub segments: usize,
    /// Bytes of all segments.
    pub bytes: usize,
    /// Bytes of all blocks that are out.
    pub used_bytes: usize,
    /// Largest `used_bytes` so far.
    pub high_water_bytes: usize,
    /// Allocations refused so far.
    pub refusals: u64,
}

/// Shared memory of one node. Clones are the same arena.
#[derive(Clone)]
pub struct Arena(Arc<Inner>);

struct Inner {
    config: ArenaConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// A segment's position here is its number in descriptors.
    segments: Vec<(Arc<Segment>, Buddy)>,
    stats: ArenaStats,
    no_growth_before: Option<Instant>,
}

impl Arena {
    /// Makes an arena with its first segment.
    pub fn new(config: ArenaConfig) -> Result<Self, SegmentError> {
        let mut state = State::default();
        let first = config
            .initial_bytes
            .clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)
            .next_power_of_two();
        state.add_segment(&config.shm, first)?;
        Ok(Self(Arc::new(Inner {
            config,
            state: Mutex::new(state),
        })))
    }

    /// Lends `bytes` of memory, whose contents are whatever was there before.
    ///
    /// Blocks are powers of two from 1 KiB, aligned to their size. O(log of a segment's blocks), unless the arena has
    /// to grow.
    pub fn alloc(&self, bytes: usize) -> Result<Extent, ArenaFull> {
        let mut state = self.0.state.lock();
        let found = order_of(bytes).and_then(|order| {
            state.take(order).or_else(|| {
                self.0.grow(&mut state, block_bytes(order));
                state.take(order)
            })
        });
        let Some((segment, offset, order)) = found else {
            state.stats.refusals += 1;
            let (used_bytes, max_bytes) = (state.stats.used_bytes, self.0.config.max_bytes);
            return Err(ArenaFull {
                wanted_bytes: bytes,
                used_bytes,
                max_bytes,
            });
        };
        let memory = Arc::clone(&state.segments[segment].0);
        Ok(Extent {
            arena: Arc::clone(&self.0),
            memory,
            segment,
            offset,
            order,
        })
    }

    pub fn stats(&self) -> ArenaStats {
        self.0.state.lock().stats
    }

    pub(crate) fn config(&self) -> &ArenaConfig {
        &self.0.config
    }

    /// Segment number `index`.
    pub(crate) fn segment(&self, index: usize) -> Option<Arc<Segment>> {
        self.0
            .state
            .lock()
            .segments
            .get(index)
            .map(|(segment, _)| Arc::clone(segment))
    }

    pub(crate) fn owns(&self, slice: &Slice) -> bool {
        Arc::ptr_eq(&self.0, &slice.extent.arena)
    }
}

impl Inner {
    /// Adds a segment with room for a block of `block` bytes, if the bound and the machine allow it.
    fn grow(&self, state: &mut State, block: usize) {
        if state.no_growth_before.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let left = self
            .config
            .max_bytes
            .saturating_sub(state.stats.bytes)
            .min(MAX_BLOCK_BYTES);
        if block > left || state.segments.len() >= MAX_SEGMENTS {
            return;
        }
        let doubled = state.segments.last().map_or(0, |(segment, _)| 2 * segment.len());
        let largest = 1 << left.ilog2();
        let bytes = doubled.max(block).min(largest);
        if let Err(error) = state.add_segment(&self.config.shm, bytes) {
            state.no_growth_before = Some(Instant::now() + GROWTH_PAUSE);
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, bytes, "shared memory cannot grow");
        } else {
            tracing::info!(bytes, total_bytes = state.stats.bytes, "shared memory has grown");
        }
    }
}

impl State {
    fn add_segment(&mut self, config: &ShmConfig, bytes: usize) -> Result<(), SegmentError> {
        let segment = Segment::create(config, bytes)?;
        let top = order_of(bytes).expect("a segment's size is a small power of two");
        self.segments.push((Arc::new(segment), Buddy::new(top)));
        self.stats.segments += 1;
        self.stats.bytes += bytes;
        Ok(())
    }

    /// The first segments are preferred, so that later ones fall idle.
    fn take(&mut self, order: u8) -> Option<(usize, usize, u8)> {
        let found = self
            .segments
            .iter_mut()
            .enumerate()
            .find_map(|(index, (_, buddy))| buddy.take(order).map(|offset| (index, offset, order)))?;
        self.stats.used_bytes += block_bytes(order);
        self.stats.high_water_bytes = self.stats.high_water_bytes.max(self.stats.used_bytes);
        Some(found)
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Arena").field(&self.stats()).finish()
    }
}

/// A block on loan, exclusive to its holder. Dropping it returns it.
pub struct Extent {
    arena: Arc<Inner>,
    memory: Arc<Segment>,
    segment: usize,
    offset: usize,
    order: u8,
}

impl Extent {
    /// Bytes of the block, at least those asked for.
    pub fn capacity(&self) -> usize {
        block_bytes(self.order)
    }

    /// Copies `source` to `at`.
    pub fn write(&mut self, at: usize, source: &[u8]) -> Result<(), OutOfBounds> {
        self.check(at, source.len())?;
        // SAFETY: the block is this value's alone and the borrow is exclusive.
        unsafe { self.memory.write(self.offset + at, source) }
    }

    /// Makes `len` bytes at `at` a payload that can be shared. The block returns with its last clone.
    pub fn into_shared(self, at: usize, len: usize) -> Result<Slice, OutOfBounds> {
        Slice::new(Arc::new(self), at, len)
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), OutOfBounds> {
        let bytes = self.capacity();
        match offset.checked_add(len) {
            Some(end) if end <= bytes => Ok(()),
            _ => Err(OutOfBounds { offset, len, bytes }),
        }
    }

    /// Copies the bytes at `at` into `target`, looking at each once.
    pub(crate) fn read_once(&self, at: usize, target: &mut [u8]) -> Result<(), OutOfBounds> {
        self.check(at, target.len())?;
        // SAFETY: `write` needs the extent exclusively, so no thread of this process writes the block meanwhile.
        unsafe { self.memory.read_once(self.offset + at, target) }
    }

    /// The word at `at`, for atomic use beside a worker that reads it.
    pub(crate) fn atomic_u32(&self, at: usize) -> Result<&AtomicU32, OutOfBounds> {
        self.check(at, 4)?;
        self.memory.atomic_u32(self.offset + at)
    }

    /// As [`Extent::atomic_u32`], eight bytes wide.
    pub(crate) fn atomic_u64(&self, at: usize) -> Result<&AtomicU64, OutOfBounds> {
        self.check(at, 8)?;
        self.memory.atomic_u64(self.offset + at)
    }

    pub(crate) fn segment(&self) -> usize {
        self.segment
    }

    /// The first `len` bytes, as descriptors name them.
    pub(crate) fn region(&self, len: usize) -> Region {
        self.region_at(0, len)
    }

    pub(crate) fn region_at(&self, at: usize, len: usize) -> Region {
        let narrow = |number| u32::try_from(number).expect("segments are at most 2 GiB, and few");
        Region {
            segment: narrow(self.segment),
            offset: narrow(self.offset + at),
            len: narrow(len),
        }
    }

    /// Where in this block a region lies that a worker has named; `None` where it does not.
    pub(crate) fn locate(&self, region: Region) -> Option<usize> {
        if region.segment as usize != self.segment {
            return None;
        }
        let at = (region.offset as usize).checked_sub(self.offset)?;
        self.check(at, region.len as usize).ok().map(|()| at)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let mut state = self.arena.state.lock();
        state.segments[self.segment].1.give_back(self.offset, self.order);
        state.stats.used_bytes -= block_bytes(self.order);
    }
}

impl std::fmt::Debug for Extent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extent")
            .field("segment", &self.segment)
            .field("offset", &self.offset)
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// A payload in the arena. Clones share it; the block returns with the last.
#[derive(Debug, Clone)]
pub struct Slice {
    extent: Arc<Extent>,
    at: usize,
    len: usize,
}

impl Slice {
    pub(crate) fn new(extent: Arc<Extent>, at: usize, len: usize) -> Result<Self, OutOfBounds> {
        extent.check(at, len)?;
        Ok(Self { extent, at, len })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the payload out: the one copy on its way from a worker to a socket.
    ///
    /// Never a view, because a worker keeps the memory mapped and might still write.
    pub fn to_bytes(&self) -> Bytes {
        if self.len == 0 {
            return Bytes::new();
        }
        // SAFETY: a slice shares its extent, so no thread of this process can write it.
        let copy = unsafe { self.extent.memory.to_vec(self.extent.offset + self.at, self.len) };
        Bytes::from(copy.expect("a slice was checked to lie in its segment"))
    }

    pub(crate) fn region(&self) -> Region {
        self.extent.region_at(self.at, self.len)
    }

    pub(crate) fn segment(&self) -> usize {
        self.extent.segment
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ShmBackend;

    fn arena(initial_bytes: usize, max_bytes: usize) -> Arena {
        let shm = ShmConfig {
            backend: ShmBackend::Memfd,
            ..ShmConfig::default()
        };
        Arena::new(ArenaConfig {
            initial_bytes,
            max_bytes,
            shm,
        })
        .unwrap()
    }

    #[test]
    fn bytes_survive_and_blocks_return() {
        let arena = arena(64 << 10, 64 << 10);
        let mut extent = arena.alloc(3000).unwrap();
        extent.write(100, b"payload").unwrap();
        let slice = extent.into_shared(100, 7).unwrap();
        let clone = slice.clone();
        drop(slice);
        assert_eq!(clone.to_bytes(), "payload");
        assert_eq!(arena.stats().used_bytes, 4096);
        drop(clone);
        assert_eq!(arena.stats().used_bytes, 0);
        assert_eq!(arena.stats().high_water_bytes, 4096);
    }

    #[test]
    fn it_grows_by_doubling_up_to_its_bound() {
        let arena = arena(4 << 10, 32 << 10);
        let first = arena.alloc(4 << 10).unwrap();
        let second = arena.alloc(1).unwrap();
        assert_eq!((arena.stats().segments, arena.stats().bytes), (2, 12 << 10));
        let third = arena.alloc(16 << 10).unwrap();
        assert_eq!((arena.stats().segments, arena.stats().bytes), (3, 28 << 10));
        let refused = arena.alloc(8 << 10).unwrap_err();
        assert_eq!(
            refused,
            ArenaFull {
                wanted_bytes: 8 << 10,
                used_bytes: 21 << 10,
                max_bytes: 32 << 10
            }
        );
        assert_eq!(arena.stats().refusals, 1);
        drop((first, second, third));
        assert!(arena.alloc(16 << 10).is_ok());
        assert!(arena.alloc(usize::MAX).is_err());
    }

    #[test]
    fn accesses_outside_of_a_block_are_refused() {
        let arena = arena(64 << 10, 64 << 10);
        let mut extent = arena.alloc(1024).unwrap();
        assert!(extent.write(1020, b"12345").is_err());
        assert!(extent.write(usize::MAX, b"1").is_err());
        assert!(extent.into_shared(1000, 25).is_err());
    }

    #[test]
    fn a_region_is_found_only_inside_its_block() {
        let arena = arena(64 << 10, 64 << 10);
        let (_first, second) = (arena.alloc(1024).unwrap(), arena.alloc(1024).unwrap());
        assert_eq!(second.locate(second.region_at(64, 960)), Some(64));
        for (offset, len) in [(1023, 1), (1024, 1025), (2048, 1), (u32::MAX, u32::MAX)] {
            assert_eq!(
                second.locate(Region {
                    segment: 0,
                    offset,
                    len
                }),
                None,
                "{offset} {len}"
            );
        }
        assert_eq!(
            second.locate(Region {
                segment: 1,
                offset: 1024,
                len: 1
            }),
            None
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Every payload reads back whatever else is written, and nothing stays out.
        #[test]
        fn payloads_do_not_touch_each_other(
            steps in prop::collection::vec((any::<bool>(), 0_usize..6000, any::<u8>()), 1..60),
        ) {
            let arena = arena(8 << 10, 128 << 10);
            let mut held: Vec<(Slice, Vec<u8>)> = Vec::new();
            for (alloc, len, byte) in steps {
                if alloc {
                    let Ok(mut extent) = arena.alloc(len) else { continue };
                    let bytes = vec![byte; len];
                    extent.write(0, &bytes).unwrap();
                    held.push((extent.into_shared(0, len).unwrap(), bytes));
                } else if !held.is_empty() {
                    held.swap_remove(len % held.len());
                }
                for (slice, bytes) in &held {
                    prop_assert_eq!(&slice.to_bytes()[..], &bytes[..]);
                }
            }
            held.clear();
            let stats = arena.stats();
            prop_assert_eq!(stats.used_bytes, 0);
            prop_assert!(stats.bytes <= 128 << 10 && stats.high_water_bytes <= stats.bytes);
        }
    }
}
