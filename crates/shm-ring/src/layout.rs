//! Where a channel's two rings lie in its segment.
//!
//! | bytes | what                                                                              |
//! |-------|-----------------------------------------------------------------------------------|
//! | 0..   | request ring (agent to worker): 256 bytes of positions, then its slots            |
//! | then  | response ring (worker to agent), the same                                         |
//!
//! Version, generation and the number of slots travel in the control socket's first message, out of reach of a worker
//! that overwrites this memory.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::descriptor::{DESCRIPTOR_BYTES, Words};
use crate::ring::{CONSUMER_WAITING, HEAD, Memory, PRODUCER_WAITING, SLOTS, TAIL};
use crate::segment::{OutOfBounds, Segment};
use crate::sync::AtomicU32;

/// Bytes of a channel's segment with rings of `capacity` slots.
pub(crate) fn channel_bytes(capacity: u32) -> usize {
    2 * ring_bytes(capacity)
}

fn ring_bytes(capacity: u32) -> usize {
    SLOTS + capacity as usize * DESCRIPTOR_BYTES
}

/// One ring in shared memory.
pub(crate) struct SharedRing {
    start: NonNull<u8>,
    /// Keeps the memory mapped.
    _segment: Arc<Segment>,
}

// SAFETY: the pointer leads into a mapping that `_segment` keeps and that any thread may use.
unsafe impl Send for SharedRing {}

impl SharedRing {
    /// The rings of a channel: requests, responses. `segment` must have room for both.
    pub(crate) fn pair(segment: &Arc<Segment>, capacity: u32) -> Result<(Self, Self), OutOfBounds> {
        let bytes = ring_bytes(capacity);
        let ring = |offset| {
            segment.at(offset, bytes).map(|start| Self {
                start,
                _segment: Arc::clone(segment),
            })
        };
        Ok((ring(0)?, ring(bytes)?))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: all four offsets lie below `SLOTS`, inside the ring, and are multiples of 64 from a 64-byte aligned
        // start; the memory lives as long as `self`; it is only ever used as an atomic, on either side.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(offset).cast()) }
    }

    /// The address of a slot. `slot` must be below the capacity, which `Producer` and `Consumer` see to by masking.
    fn slot(&self, slot: u32) -> *mut u64 {
        // SAFETY: the ring was checked to hold every slot below its capacity.
        unsafe {
            self.start
                .as_ptr()
                .add(SLOTS + slot as usize * DESCRIPTOR_BYTES)
                .cast()
        }
    }
}

impl Memory for SharedRing {
    fn tail(&self) -> &AtomicU32 {
        self.word(TAIL)
    }

    fn head(&self) -> &AtomicU32 {
        self.word(HEAD)
    }

    fn consumer_waiting(&self) -> &AtomicU32 {
        self.word(CONSUMER_WAITING)
    }

    fn producer_waiting(&self) -> &AtomicU32 {
        self.word(PRODUCER_WAITING)
    }

    fn read(&self, slot: u32) -> Words {
        let slot = self.slot(slot);
        // SAFETY: eight aligned words of a slot that was published. Volatile: each word is read once, so what is
        // checked is what is used, whatever the peer does meanwhile.
        std::array::from_fn(|word| unsafe { slot.add(word).read_volatile() })
    }

    fn write(&self, slot: u32, words: &Words) {
        let slot = self.slot(slot);
        for (index, word) in words.iter().enumerate() {
            // SAFETY: eight aligned words of a slot that the consumer has given back.
            unsafe { slot.add(index).write_volatile(*word) };
        }
    }
}
