//! Hot path. A ring of 64-byte descriptors with one producer and one consumer, in two processes.
//!
//! Bytes of one ring, little-endian, every part on cache lines of its own:
//!
//! | bytes    | name             | written by        | meaning                                              |
//! |----------|------------------|-------------------|------------------------------------------------------|
//! | 0..4     | tail             | producer          | slots published so far, modulo 2^32                  |
//! | 64..68   | head             | consumer          | slots taken so far, modulo 2^32                      |
//! | 128..132 | consumer waiting | both              | 1: the consumer sleeps and wants its bell rung       |
//! | 192..196 | producer waiting | both              | 1: the producer sleeps for lack of room              |
//! | 256..    | slots            | producer          | `capacity` descriptors (a power of two)              |
//!
//! A slot is written in full before `tail` moves past it, so a producer that dies half-way leaves nothing to see. Each
//! side keeps its own position in private memory and only believes the other's where the distance is possible.

use crate::descriptor::Words;
use crate::sync::{AtomicU32, Ordering, fence};

pub(crate) const TAIL: usize = 0;
pub(crate) const HEAD: usize = 64;
pub(crate) const CONSUMER_WAITING: usize = 128;
pub(crate) const PRODUCER_WAITING: usize = 192;
pub(crate) const SLOTS: usize = 256;

/// The other side's position is impossible: it has a bug or its memory was overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("ring is corrupt: its ends are {distance} slots apart, of {capacity}")]
pub struct CorruptRing {
    distance: u32,
    capacity: u32,
}

/// Where a ring lies. One implementation is shared memory, the other a model's.
pub(crate) trait Memory {
    fn tail(&self) -> &AtomicU32;
    fn head(&self) -> &AtomicU32;
    fn consumer_waiting(&self) -> &AtomicU32;
    fn producer_waiting(&self) -> &AtomicU32;
    fn read(&self, slot: u32) -> Words;
    fn write(&self, slot: u32, words: &Words);
}

/// Whether the other side sleeps, so its doorbell must be rung.
#[must_use = "a sleeping peer whose bell is not rung sleeps on"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bell {
    Ring,
    Leave,
}

impl Bell {
    /// Takes the flag a sleeper has set.
    ///
    /// Half of the handshake that loses no wake-up: the caller has just moved its position, and the sleeper sets the
    /// flag before it looks at that position. The fences put both in one order, so one of the two sees the other.
    fn take(flag: &AtomicU32) -> Self {
        fence(Ordering::SeqCst); // SYNC waiting: pairs with the fence in `sleep_unless`
        if flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::AcqRel) != 0 {
            Self::Ring
        } else {
            Self::Leave
        }
    }
}

/// Sets `flag`, unless `awake` finds work. True: sleep until the bell rings.
fn sleep_unless(flag: &AtomicU32, awake: impl FnOnce() -> bool) -> bool {
    // A swap, as the peer's: each sees what the other's has done, so a taken flag cannot be mistaken for a new one.
    flag.swap(1, Ordering::AcqRel);
    fence(Ordering::SeqCst); // SYNC waiting: pairs with the fence in `Bell::take`
    if awake() {
        flag.store(0, Ordering::Relaxed);
        return false;
    }
    true
}

/// The half that puts descriptors in.
pub(crate) struct Producer<M> {
    memory: M,
    capacity: u32,
    tail: u32,
    /// The consumer's position when last looked at: spares a shared cache line per push.
    seen_head: u32,
}

impl<M: Memory> Producer<M> {
    /// `memory` holds a ring of `capacity` slots, a power of two, that nothing has been put into.
    pub(crate) fn new(memory: M, capacity: u32) -> Self {
        debug_assert!(capacity.is_power_of_two());
        Self {
            memory,
            capacity,
            tail: 0,
            seen_head: 0,
        }
    }

    /// Slots that are free, at least where it matters: when fewer than `wanted` seem free it looks again.
    pub(crate) fn free(&mut self, wanted: u32) -> Result<u32, CorruptRing> {
        if self.capacity - self.tail.wrapping_sub(self.seen_head) < wanted {
            // SYNC slot-taken: pairs with the Release in `Consumer::pop`
            let head = self.memory.head().load(Ordering::Acquire);
            let distance = self.tail.wrapping_sub(head);
            if distance > self.capacity {
                return Err(CorruptRing {
                    distance,
                    capacity: self.capacity,
                });
            }
            self.seen_head = head;
        }
        Ok(self.capacity - self.tail.wrapping_sub(self.seen_head))
    }

    /// Puts one descriptor in; `None` where the ring is full.
    pub(crate) fn push(&mut self, words: &Words) -> Result<Option<Bell>, CorruptRing> {
        if self.free(1)? == 0 {
            return Ok(None);
        }
        self.memory.write(self.tail & (self.capacity - 1), words);
        self.tail = self.tail.wrapping_add(1);
        // SYNC slot-published: pairs with the Acquire in `Consumer::pending`
        self.memory.tail().store(self.tail, Ordering::Release);
        Ok(Some(Bell::take(self.memory.consumer_waiting())))
    }

    /// Says that this side will sleep for room. False: there is some.
    pub(crate) fn sleep_for_room(&mut self) -> Result<bool, CorruptRing> {
        let full_at = self.tail.wrapping_sub(self.capacity);
        let head = self.memory.head();
        let sleep = sleep_unless(self.memory.producer_waiting(), || {
            head.load(Ordering::Acquire) != full_at
        });
        if !sleep {
            self.free(self.capacity)?;
        }
        Ok(sleep)
    }
}

/// The half that takes descriptors out.
pub(crate) struct Consumer<M> {
    memory: M,
    capacity: u32,
    head: u32,
    /// The producer's position when last looked at.
    seen_tail: u32,
}

impl<M: Memory> Consumer<M> {
    /// `memory` holds a ring of `capacity` slots, a power of two, that nothing has been taken from.
    pub(crate) fn new(memory: M, capacity: u32) -> Self {
        debug_assert!(capacity.is_power_of_two());
        Self {
            memory,
            capacity,
            head: 0,
            seen_tail: 0,
        }
    }

    /// Takes the oldest descriptor, and whether the producer waits for the room it leaves.
    pub(crate) fn pop(&mut self) -> Result<Option<(Words, Bell)>, CorruptRing> {
        if self.seen_tail == self.head && self.pending()? == 0 {
            return Ok(None);
        }
        let words = self.memory.read(self.head & (self.capacity - 1));
        self.head = self.head.wrapping_add(1);
        // SYNC slot-taken: pairs with the Acquire in `Producer::free`
        self.memory.head().store(self.head, Ordering::Release);
        Ok(Some((words, Bell::take(self.memory.producer_waiting()))))
    }

    /// Descriptors that wait to be taken.
    pub(crate) fn pending(&mut self) -> Result<u32, CorruptRing> {
        // SYNC slot-published: pairs with the Release in `Producer::push`
        let tail = self.memory.tail().load(Ordering::Acquire);
        let distance = tail.wrapping_sub(self.head);
        if distance > self.capacity {
            return Err(CorruptRing {
                distance,
                capacity: self.capacity,
            });
        }
        self.seen_tail = tail;
        Ok(distance)
    }

    /// Says that this side will sleep for a descriptor. False: there is one.
    pub(crate) fn sleep_for_work(&mut self) -> bool {
        let head = self.head;
        let tail = self.memory.tail();
        sleep_unless(self.memory.consumer_waiting(), || {
            tail.load(Ordering::Acquire) != head
        })
    }

    /// Takes back what [`Consumer::sleep_for_work`] said: awake again, whatever woke it.
    pub(crate) fn awake(&self) {
        self.memory.consumer_waiting().store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, loom))]
#[path = "ring/models.rs"]
mod models;

#[cfg(all(test, not(loom)))]
#[path = "ring/tests.rs"]
mod tests;
