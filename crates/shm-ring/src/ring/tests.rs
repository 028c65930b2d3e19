//! The ring in shared memory, and what it makes of positions that cannot be.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::layout::{SharedRing, channel_bytes};
use crate::segment::{Segment, ShmBackend, ShmConfig};

fn ring(capacity: u32) -> (Producer<SharedRing>, Consumer<SharedRing>, SharedRing) {
    let config = ShmConfig {
        backend: ShmBackend::Memfd,
        ..ShmConfig::default()
    };
    let segment = Arc::new(Segment::create(&config, channel_bytes(capacity)).expect("memory"));
    let one = || SharedRing::pair(&segment, capacity).expect("room for both").0;
    (
        Producer::new(one(), capacity),
        Consumer::new(one(), capacity),
        one(),
    )
}

#[test]
fn a_full_ring_refuses_and_an_empty_one_has_nothing() {
    let (mut producer, mut consumer, _) = ring(4);
    for number in 0..4 {
        assert_eq!(producer.push(&[number; 8]), Ok(Some(Bell::Leave)));
    }
    assert_eq!(producer.push(&[9; 8]), Ok(None));
    assert_eq!(consumer.pop(), Ok(Some(([0; 8], Bell::Leave))));
    assert_eq!(producer.push(&[4; 8]), Ok(Some(Bell::Leave)));
    for number in 1..5 {
        assert_eq!(consumer.pop(), Ok(Some(([number; 8], Bell::Leave))));
    }
    assert_eq!(consumer.pop(), Ok(None));
}

#[test]
fn only_a_sleeper_is_rung_for_and_only_once() {
    let (mut producer, mut consumer, _) = ring(4);
    assert!(consumer.sleep_for_work());
    assert_eq!(producer.push(&[1; 8]), Ok(Some(Bell::Ring)));
    assert_eq!(producer.push(&[2; 8]), Ok(Some(Bell::Leave)));
    assert!(!consumer.sleep_for_work(), "there is work");
    assert_eq!(producer.push(&[3; 8]), Ok(Some(Bell::Leave)));
    assert_eq!(producer.push(&[4; 8]), Ok(Some(Bell::Leave)));
    assert_eq!(producer.sleep_for_room(), Ok(true));
    assert_eq!(consumer.pop(), Ok(Some(([1; 8], Bell::Ring))));
    assert_eq!(producer.sleep_for_room(), Ok(false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_positions_are_believed_or_refused(tail: u32, head: u32, pushes in 1_u32..20) {
        let (mut producer, mut consumer, memory) = ring(8);
        for _ in 0..pushes {
            let _ = producer.push(&[1; 8]);
        }
        memory.tail().store(tail, Ordering::Relaxed);
        memory.head().store(head, Ordering::Relaxed);
        prop_assert_eq!(consumer.pending().is_ok(), tail <= 8);
        let distance = pushes.min(8).wrapping_sub(head);
        prop_assert_eq!(producer.free(8).is_ok(), distance <= 8);
        // Never more than the ring holds, so a loop over it ends.
        let taken = std::iter::from_fn(|| consumer.pop().ok().flatten()).take(100).count();
        prop_assert!(taken <= 8);
    }
}

#[test]
fn positions_wrap_around_their_32_bits() {
    let (mut producer, mut consumer, memory) = ring(4);
    let start = u32::MAX - 1;
    memory.tail().store(start, Ordering::Relaxed);
    memory.head().store(start, Ordering::Relaxed);
    (
        producer.tail,
        producer.seen_head,
        consumer.head,
        consumer.seen_tail,
    ) = (start, start, start, start);
    for number in 0..12 {
        assert_eq!(producer.push(&[number; 8]), Ok(Some(Bell::Leave)));
        assert_eq!(consumer.pop(), Ok(Some(([number; 8], Bell::Leave))));
    }
    assert_eq!(memory.tail().load(Ordering::Relaxed), 10);
}
