//! The agent's half against a worker that writes anything anywhere.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::arena::ArenaConfig;
use crate::descriptor::{Region, Words};
use crate::ring::Memory;
use crate::segment::{ShmBackend, ShmConfig};

const SLOTS: u32 = 8;
const ITEMS: u32 = 3;

/// A channel with batches 1 and 2 in flight, and the ends that a worker could write to.
struct Hostile {
    arena: Arena,
    agent: AgentChannel,
    responses: SharedRing,
    _worker_end: OwnedFd,
}

impl Hostile {
    fn new() -> Self {
        let shm = ShmConfig {
            backend: ShmBackend::Memfd,
            ..ShmConfig::default()
        };
        let config = ArenaConfig {
            initial_bytes: 32 << 10,
            max_bytes: 64 << 10,
            shm,
        };
        let arena = Arena::new(config).expect("memory");
        let config = ChannelConfig { ring_slots: SLOTS };
        let (agent, worker_end) = AgentChannel::create(&arena, Generation(7), &config).expect("a channel");
        agent.hello("{}").expect("hello");
        let item = RequestItem {
            flags: 0,
            deadline_micros: 0,
            request: 5,
            headers: b"",
            payload: ItemPayload::Bytes(&Bytes::from_static(b"payload")),
        };
        for batch in 1..=2 {
            let request = Request {
                batch,
                items: &[item; ITEMS as usize],
                reply_hint: 500,
            };
            agent.request(&request).expect("room");
        }
        let (_, responses) = SharedRing::pair(&agent.rings, SLOTS).expect("both rings");
        Self {
            arena,
            agent,
            responses,
            _worker_end: worker_end,
        }
    }

    /// Writes all over the arena's memory.
    fn scribble(&self, bytes: &[u8]) {
        let segment = self.arena.segment(0).expect("the first");
        let pattern = bytes
            .iter()
            .copied()
            .cycle()
            .take(segment.len())
            .collect::<Vec<_>>();
        // SAFETY: no other thread of this test.
        unsafe { segment.write(0, &pattern) }.expect("inside");
    }

    fn publish(&self, slots: &[Words], tail: u32) {
        for (slot, words) in (0..SLOTS).zip(slots) {
            self.responses.write(slot, words);
        }
        self.responses.tail().store(tail, crate::sync::Ordering::Release);
    }

    /// Polls, checks what comes out, and reclaims.
    fn check(self) -> Result<(), TestCaseError> {
        let mut out = Vec::new();
        let _ = self.agent.poll_responses(&mut out);
        let _ = self.agent.poll_responses(&mut out);
        let mut last = std::collections::HashSet::new();
        for response in &out {
            prop_assert!((1..=2).contains(&response.batch));
            for item in &response.items {
                prop_assert!(item.item < ITEMS);
                prop_assert!(
                    !last.contains(&(response.batch, item.item)),
                    "answered after its last answer"
                );
                if item.last {
                    last.insert((response.batch, item.item));
                }
                prop_assert_eq!(item.payload.to_bytes().len(), item.payload.len());
            }
            let answered = last.iter().filter(|(batch, _)| *batch == response.batch).count();
            prop_assert!(!response.done || answered == ITEMS as usize);
        }
        self.agent.reclaim();
        out.clear();
        prop_assert_eq!(self.arena.stats().used_bytes, 0);
        Ok(())
    }
}

/// Regions in and around what is lent: reply extents are 1 KiB blocks of segment 0.
fn region() -> impl Strategy<Value = Region> {
    let number = prop_oneof![0_u32..20_000, any::<u32>()];
    let offset = prop_oneof![(0_u32..20).prop_map(|block| block * 1024), number.clone()];
    (0_u32..2, offset, prop_oneof![0_u32..1100, number]).prop_map(|(segment, offset, len)| Region {
        segment,
        offset,
        len,
    })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        8 => (0_u32..5, region(), any::<u64>())
            .prop_map(|(count, region, nanos)| Body::Answers { count, region, nanos }),
        1 => (any::<u32>(), region(), any::<u64>())
            .prop_map(|(count, region, nanos)| Body::Answers { count, region, nanos }),
        2 => prop_oneof![0_u64..40_000, any::<u64>()].prop_map(|bytes| Body::Alloc { bytes }),
        4 => (0..ITEMS + 1, any::<u16>()).prop_map(|(item, code)| Body::Fail { item, code, nanos: 0 }),
        1 => any::<u64>().prop_map(|bytes| Body::Refuse { bytes }),
        2 => prop_oneof![Just(Body::Hold), Just(Body::Release)],
    ]
}

fn likely() -> impl Strategy<Value = Words> {
    (
        prop_oneof![9 => Just(7_u32), 1 => any::<u32>()],
        prop_oneof![9 => 1_u64..3, 1 => any::<u64>()],
        body(),
    )
        .prop_map(|(generation, batch, body)| {
            Descriptor {
                generation,
                batch,
                body,
            }
            .encode()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn likely_descriptors_never_break_the_agent(
        slots in prop::collection::vec(likely(), 0..=SLOTS as usize),
        // Small numbers make rows of an answer table that pass the first checks.
        bytes in prop::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 0_u8..4, 1 => any::<u8>()], 1..64),
    ) {
        let hostile = Hostile::new();
        hostile.scribble(&bytes);
        hostile.publish(&slots, u32::try_from(slots.len()).expect("few"));
        hostile.check()?;
    }

    #[test]
    fn arbitrary_bytes_never_break_the_agent(
        slots in prop::collection::vec(any::<Words>(), SLOTS as usize),
        bytes in prop::collection::vec(any::<u8>(), 1..64),
        tail: u32,
    ) {
        let hostile = Hostile::new();
        hostile.scribble(&bytes);
        hostile.publish(&slots, tail);
        hostile.check()?;
    }
}

#[test]
fn a_worker_of_another_generation_is_refused() {
    let hostile = Hostile::new();
    let stale = Descriptor {
        generation: 6,
        batch: 1,
        body: Body::Fail {
            item: 0,
            code: 4,
            nanos: 0,
        },
    };
    hostile.publish(&[stale.encode()], 1);
    let error = hostile.agent.poll_responses(&mut Vec::new()).expect_err("stale");
    assert!(
        matches!(error, ChannelError::Misbehaved(Misbehaviour::Stale(6))),
        "{error}"
    );
    hostile.agent.reclaim();
}

#[test]
fn a_worker_that_asks_for_memory_without_end_is_refused() {
    let hostile = Hostile::new();
    let ask = Descriptor {
        generation: 7,
        batch: 1,
        body: Body::Alloc { bytes: 2000 },
    }
    .encode();
    hostile.publish(&[ask; SLOTS as usize], SLOTS);
    let error = hostile
        .agent
        .poll_responses(&mut Vec::new())
        .expect_err("asked on");
    assert!(
        matches!(error, ChannelError::Misbehaved(Misbehaviour::AskedOn)),
        "{error}"
    );
    hostile.agent.reclaim();
    assert_eq!(hostile.arena.stats().used_bytes, 0);
}

#[test]
fn a_worker_that_gives_back_what_it_does_not_hold_is_refused() {
    let hostile = Hostile::new();
    let release = Descriptor {
        generation: 7,
        batch: 9,
        body: Body::Release,
    };
    hostile.publish(&[release.encode()], 1);
    let error = hostile
        .agent
        .poll_responses(&mut Vec::new())
        .expect_err("not held");
    assert!(
        matches!(error, ChannelError::Misbehaved(Misbehaviour::NotHeld(9))),
        "{error}"
    );
    hostile.agent.reclaim();
}
